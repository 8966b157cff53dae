"""Floor 3: the big model as a teacher, and what it is asked.

- `teachers`: what a reference names (`teacher`: what every kind is; one file for each kind)
- `asking`: many texts at once, nothing twice, within a budget; `answer_book`: what was told, kept
- `probing`: what asking will cost, and whether the big model agrees with itself
- `inputs`: texts from files and from the store; `soft_answers`: from log-probabilities to labels
"""
