"""A recipe's stages as Slurm jobs: readable sbatch scripts from templates that the user owns."""

from nemo_openmath.launch.cluster import TEMPLATES, Cluster, load_cluster
from nemo_openmath.launch.jobs import SlurmJob, StageInfo, plan_jobs
from nemo_openmath.launch.scripts import submit, write_scripts
from nemo_openmath.launch.serving import AskedModel

__all__ = [
    "TEMPLATES",
    "AskedModel",
    "Cluster",
    "SlurmJob",
    "StageInfo",
    "load_cluster",
    "plan_jobs",
    "submit",
    "write_scripts",
]
