# %% text
# # 6. Which model needs its last block?
#
# An hour and a half. In 2021 it was found that the lens fails on GPT-Neo, and that it works when the last block is made
# part of the decoder. Is it so in the small models that come with minilens?
#
# **Before you begin, write down your own hypothesis.** Why might a model keep something for its last block? What would
# you have to see to give the hypothesis up?
# %% code
from minilens.course.lessons import LONG

models = {name: minilens.load(name) for name in ("tales-gpt2", "tales-gpt-neo")}
# %% exercise 6.1, 20 minutes
# The mean KL(output ‖ row) of the row after block 5, two blocks before the end, on the text `LONG`. Two numbers, for
# tales-gpt2 and for tales-gpt-neo. The decoder is the final norm and the unembedding alone.
# hint: `minilens.logit_lens(model, tokens, decoder="final").kl_final` is [row, position].
# hint: Which row it is, `table.labels` says: `table.labels.index("5.resid_post")`.
# null: 0 would mean that the last two blocks do nothing. How far apart are two outputs of one text (exercise 7.3)?
# solution
tables = [minilens.logit_lens(model, tok.encode(LONG), decoder="final") for model, tok in models.values()]
answer_6_1 = torch.stack([table.kl_final[table.labels.index("5.resid_post")].mean() for table in tables])
# %% exercise 6.2, 20 minutes
# The same with the last block as part of the decoder: which model gains more?
# hint: `decoder="block:1"`.
# null: a decoder with one block more has more to work with. It would do better though nothing were special about it.
# solution
tables = [minilens.logit_lens(model, tok.encode(LONG), decoder="block:1") for model, tok in models.values()]
answer_6_2 = torch.stack([table.kl_final[table.labels.index("5.resid_post")].mean() for table in tables])
# %% exercise 6.3, 30 minutes
# Is it the last block, or would any do? For tales-gpt-neo: take the stream after block 5, run block n on it (n = 0 to
# 7), unembed, and take the mean KL(output ‖ that). Eight numbers.
# hint: `model.block(n, resid).resid_post` runs one block on a stream.
# hint: KL is the sum over the vocabulary of p * (ln p - ln q), where p is the output; `log_softmax(-1)` is ln p.
# null: this is the null of exercise 6.2: blocks that are not the last one.
model, tokenizer = models["tales-gpt-neo"]
trace = minilens.trace(model, tokenizer.encode(LONG))
# solution
output = trace.logits[0].log_softmax(-1)
resid = trace.blocks[5].resid_post
rows = [model.unembed(model.block(n, resid).resid_post)[0].log_softmax(-1) for n in range(8)]
answer_6_3 = torch.stack([(output.exp() * (output - row)).sum(-1).mean() for row in rows])
# %% text
# One text proves little. `minilens corpus tales-gpt-neo FILE --out FOLDER` does the same on files, with standard
# errors. `minilens study` puts the findings of 2021 as numbers, on any model. The small one does not share all of
# GPT-Neo's trouble. Does your hypothesis still stand?
