"""The file formats of checkpoints: each module reads and writes one, tensor by tensor, without loading a model.

protocol.py      what the formats that can be opened have in common
hf.py            a Hugging Face folder: which of its tensors are the model
safetensors.py   the files of weights in it
torch_dist.py    megatron-core's ``torch_dist`` (PyTorch distributed checkpoint)
step_folders.py  the folder that a training saves: ``torch_dist`` with a manifest and the model's files
classic.py       Megatron-LM's ``mp_rank_*`` folders
torch_file.py    files of ``torch.save``, which the two Megatron formats consist of
trtllm.py        TensorRT-LLM checkpoints, which are written only
trtllm_redrafter.py  a ReDrafter beside its model in one
"""
