# %% text
# # 4. What the parts write
#
# About an hour. The stream is a sum: the embedding, and what each attention and each MLP adds. So is a logit, nearly:
# the final norm divides by one number, and if that is held fixed the rest is a sum.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
tokens = tokenizer.encode(STORY)
trace = minilens.trace(model, tokens)
token = int(trace.logits[0, -1].argmax())
print(tokenizer.decode(torch.tensor([token])))
# %% exercise 4.1, 15 minutes
# What each part writes at the last position: the embedding, then attention and MLP of block 0, of block 1, and so on.
# A tensor [17, d_model].
# hint: `block.attn_out[0, -1]` and `block.mlp_out[0, -1]`.
# hint: Check it yourself: its sum over the parts is `trace.blocks[-1].resid_post[0, -1]`.
# null: two random parts of this length would be almost at right angles. Are these?
# solution
parts = [trace.embed, *(part for block in trace.blocks for part in (block.attn_out, block.mlp_out))]
answer_4_1 = torch.stack([part[0, -1] for part in parts])
# %% exercise 4.2, 25 minutes
# What each part adds to the logit of `token`: 17 numbers. The final norm is (x - mean) / sqrt(variance + eps) * w +
# b. Hold its divisor at what it is for the whole stream.
# hint: Each part loses its own mean, is divided by the divisor of the whole, and multiplied by `model.ln_final.w`.
# hint: The divisor is `(resid.var(correction=0) + model.ln_final_eps).sqrt()` of the whole stream.
# hint: Then comes the token's column of the unembedding: `model.W_U[:, token]`.
# null: a part may move all logits, and choose none. That is exercise 4.3.
parts = answer_4_1
resid = trace.blocks[-1].resid_post[0, -1]
# solution
divisor = (resid.var(correction=0) + model.ln_final_eps).sqrt()
written = (parts - parts.mean(-1, keepdim=True)) / divisor * model.ln_final.w
answer_4_2 = written @ model.W_U[:, token]
# %% exercise 4.3, 15 minutes
# The mean, over all tokens of the vocabulary, of the size (absolute value) of what each part adds: 17 numbers.
# hint: As before, with the whole of `model.W_U`, then `.abs().mean(1)`.
# null: this is the null of exercise 4.2. Which parts add more to this token than to any?
# solution
divisor = (resid.var(correction=0) + model.ln_final_eps).sqrt()
written = (parts - parts.mean(-1, keepdim=True)) / divisor * model.ln_final.w
answer_4_3 = (written @ model.W_U).abs().mean(1)
