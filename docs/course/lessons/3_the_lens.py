# %% text
# # 3. The logit lens
#
# About an hour. In 2020 a post asked: what would the model say, if it ended after this block? Every block leaves a
# stream of the same width, so the last steps can be taken from any of them.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
tokens = tokenizer.encode(STORY)
trace = minilens.trace(model, tokens)
# %% exercise 3.1, 20 minutes
# The logits at the last position of each row: of the stream entering block 0, and of that after each block. A tensor
# [row, d_vocab], with nine rows.
# hint: `model.unembed(resid)` is the final norm and the unembedding.
# hint: The rows are `trace.embed` and `block.resid_post` of each block of `trace.blocks`.
# null: the row of `trace.embed` has seen one token only. What can it know?
# solution
rows = [trace.embed, *(block.resid_post for block in trace.blocks)]
answer_3_1 = torch.stack([model.unembed(resid)[0, -1] for resid in rows])
# %% exercise 3.2, 20 minutes
# At which share of the positions is the best token of a row that of the output? A tensor of nine shares.
# hint: `model.unembed(resid)[0].argmax(-1)` are the best tokens of a row at all positions.
# hint: Compare with those of the last row, and take the mean.
# null: some tokens are the best almost everywhere, so some agreement needs no reading. That is exercise 3.3.
# solution
rows = [trace.embed, *(block.resid_post for block in trace.blocks)]
best = torch.stack([model.unembed(resid)[0].argmax(-1) for resid in rows])
answer_3_2 = (best == best[-1]).float().mean(1)
# %% exercise 3.3, 20 minutes
# The same, but held against the output at the position before: row at position 1 with output at position 0, and so
# on.
# hint: `best[:, 1:]` and `best[-1, :-1]`.
# null: this is the null of exercise 3.2. How many positions would it need to be sure that the two differ?
# solution
rows = [trace.embed, *(block.resid_post for block in trace.blocks)]
best = torch.stack([model.unembed(resid)[0].argmax(-1) for resid in rows])
answer_3_3 = (best[:, 1:] == best[-1, :-1]).float().mean(1)
# %% code
print(tokenizer.tokens(STORY))
table = minilens.logit_lens(model, tokens, tokenizer=tokenizer)
print(table.agrees.float().mean(1))
