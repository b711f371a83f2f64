# %% text
# # 5. Who gives the ball to whom
#
# About an hour. Two texts differ in one name. Values of one run are put into the other: what turns the answer round
# carries the difference.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
clean, corrupt = (tokenizer.encode(GAVE.format(name)) for name in ("Tom", "Sue"))
metric = minilens.logit_difference(tokenizer.id(" Sue"), tokenizer.id(" Tom"))
print(GAVE.format("Tom"))
# %% exercise 5.1, 10 minutes
# The logit of `" Sue"` less that of `" Tom"` at the last position: for the clean text, and for the corrupt one. A
# tensor of two numbers.
# hint: `model(tokens)[:, -1]` are the logits; `metric(logits)` is the difference.
# null: 0: the model has no preference.
# solution
answer_5_1 = torch.cat([metric(model(text)[:, -1]) for text in (clean, corrupt)])
# %% exercise 5.2, 25 minutes
# The same for the clean text, when one head of the last four layers is silenced: a tensor [layer, head], 4 by 8.
# hint: `minilens.zero(layer, "z", heads=head)` is an edit; `minilens.trace(model, tokens, edit=...)` runs with it.
# hint: Two loops, 32 runs. `minilens.decode(model, resid, start=layer, edit=...)` runs the blocks from there on only.
# null: most heads change little. Their spread says what "little" is.
blocks = minilens.trace(model, clean).blocks
# solution
answer_5_2 = torch.empty(4, 8)
for layer in range(4, 8):
    for head in range(8):
        edit = minilens.zero(layer, "z", heads=head)
        logits = minilens.decode(model, blocks[layer].resid_pre, start=layer, edit=edit)
        answer_5_2[layer - 4, head] = metric(logits[:, -1]).item()
# %% exercise 5.3, 25 minutes
# Now the corrupt text, with the `z` of one head at the last position taken from the clean run: again 4 by 8.
# hint: `minilens.patch(blocks[layer], "z", heads=head, positions=-1)`, with `blocks` of the clean run.
# null: the median over all heads. How far is the best one from it?
untouched = minilens.trace(model, corrupt).blocks
# solution
answer_5_3 = torch.empty(4, 8)
for layer in range(4, 8):
    for head in range(8):
        edit = minilens.patch(blocks[layer], "z", heads=head, positions=-1)
        logits = minilens.decode(model, untouched[layer].resid_pre, start=layer, edit=edit)
        answer_5_3[layer - 4, head] = metric(logits[:, -1]).item()
