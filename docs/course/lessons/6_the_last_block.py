# %% text
# # 6. Which model needs its last block?
#
# An hour and a half. In 2021 it was found that the lens fails on GPT-Neo, and that it works when the last block is
# made part of the decoder. **Before you begin, write down your own hypothesis**: why might a model keep something for
# the end? What would you have to see to give it up?
# %% code
models = {name: minilens.load(name) for name in ("tales-gpt2", "tales-gpt-neo")}
# %% exercise 6.1, 20 minutes
# At which share of the positions of `STORY` does the row before the last agree with the output? Two numbers, for
# tales-gpt2 and for tales-gpt-neo.
# hint: `minilens.logit_lens(model, tokens, decoder="final").agrees` is [row, position].
# hint: Row -2.
# null: 1.0 would mean that the last block changes no best token. What is it for two outputs at neighbouring
# positions?
# solution
tables = [minilens.logit_lens(model, tok.encode(STORY), decoder="final") for model, tok in models.values()]
answer_6_1 = torch.stack([table.agrees[-2].float().mean() for table in tables])
# %% exercise 6.2, 20 minutes
# The same with the last block as part of the decoder.
# hint: `decoder="block:1"`; there is one row less.
# null: a decoder of one block more has more to work with. It would do better even if nothing were special about it.
# solution
tables = [minilens.logit_lens(model, tok.encode(STORY), decoder="block:1") for model, tok in models.values()]
answer_6_2 = torch.stack([table.agrees[-2].float().mean() for table in tables])
# %% exercise 6.3, 30 minutes
# Is it the last block, or would any do? For tales-gpt-neo: take the stream after block 5, run block n on it (n = 0 to
# 7), unembed, and compare the best tokens with the output's. Eight shares.
# hint: `model.block(n, resid).resid_post` runs one block on a stream.
# hint: The stream after block 5 is `trace.blocks[5].resid_post`, which is `blocks[-3]`.
# null: this is the null of exercise 6.2: blocks that are no last one.
model, tokenizer = models["tales-gpt-neo"]
trace = minilens.trace(model, tokenizer.encode(STORY))
# solution
output = trace.logits[0].argmax(-1)
resid = trace.blocks[5].resid_post
best = [model.unembed(model.block(n, resid).resid_post)[0].argmax(-1) for n in range(8)]
answer_6_3 = torch.stack([(each == output).float().mean() for each in best])
# %% text
# One text of some twenty tokens proves little. `minilens corpus tales-gpt-neo FILE --out FOLDER` does the same on
# files,
# with standard errors. Does your hypothesis still stand?
