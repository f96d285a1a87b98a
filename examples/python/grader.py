"""Grade answers: is this the same answer, is it surely another one, or can nobody tell from the text?

python examples/python/grader.py
"""

from nemo_openmath.grading import compare, extract_answer, majority

solution = r"Adding both equations gives $2x = 3$, so the answer is \boxed{\frac{3}{2}}."
predicted = extract_answer(solution).answer
print("extracted:", predicted)

for expected in ("1.5", r"\dfrac{6}{4}", "3/4", r"\sum_{k=1}^{3} \frac{k}{4}"):
    grade = compare(predicted, expected)  # equal, not_equal, unknown or timeout, always with a reason
    print(f"{predicted} against {expected}: {grade.verdict} ({grade.reason})")

vote = majority(["12", r"\frac{24}{2}", "13", None, "12.0"])  # answers are counted by meaning, not by spelling
print("majority:", vote.answer, "with", vote.count, "of", vote.total, "votes")
