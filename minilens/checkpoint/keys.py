"""Keys of config.json that change nothing in a forward pass, each for a reason, and keys with one value only.

The lists come from the sources of 24 versions of transformers, 2.0 to 5.23: scripts/config_keys.py reads them, and says
which keys are missing here. The patterns are for keys that people and their tools add. A pattern never takes a key that
speaks of a model's inside: another architecture may use it.
"""

import re
from typing import Any

HARMLESS = {  # why -> the keys
    "origin": "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _auto_class "
    "_commit_hash _experts_implementation _name_or_path architectures attn_implementation dtype "
    "experts_implementation from_flax from_pt from_tf model_type name_or_path torch_dtype transformers_version "
    "use_bfloat16",
    "training": "attention_dropout attn_pdrop base_model_ep_plan base_model_fsdp_plan base_model_pp_plan "
    "base_model_tp_plan classifier_dropout embd_pdrop embed_dropout gradient_checkpointing initializer_range "
    "line_by_line resid_dropout resid_pdrop tf_legacy_loss xla_device",
    "generation": "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
    "bad_words_ids begin_suppress_tokens bos_token_id cache_config cache_implementation compile_config constraints "
    "continuous_batching_config decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers "
    "early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id eos_token_ids epsilon_cutoff "
    "eta_cutoff exponential_decay_length_penalty force_word_ids force_words_ids forced_bos_token_id forced_decoder_ids "
    "forced_eos_token_id generation_config generation_kwargs guidance_scale is_assistant length_penalty low_memory "
    "max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p "
    "no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams "
    "num_return_sequences output_attentions output_hidden_states output_logits output_past output_scores pad_token_id "
    "penalty_alpha prefill_chunk_size prefix prompt_lookup_num_tokens remove_invalid_values renormalize_logits "
    "repetition_penalty return_dict return_dict_in_generate return_legacy_cache sep_token_id sequence_bias "
    "speculation_type stop_strings suppress_tokens target_lookbehind task_specific_params temperature token_healing "
    "tokenizer_class top_h top_k top_p torchscript typical_p use_cache use_mtp watermarking_config",
    "other heads": "_num_labels finetuning_task id2label label2id n_special num_labels predict_special_tokens "
    "problem_type summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj",
    "length trained at": "n_ctx",
    "encoders": "chunk_size_feed_forward is_decoder",
    "people and tools": "bfloat16 loss_type merges_file model_max_length model_parallel "
    "optimizer tokenizer tokenizer_file trust_remote_code use_flash_attention_2 use_return_dict vocab_file",
}

PATTERNS = {  # why -> the keys
    "dropout": r"(\w+_)?(dropout|pdrop|layerdrop|drop_path)(_(p|prob|rate|ratio))?",
    "special tokens": r"((decoder_start|forced)_)?(bos|eos|unk|pad|mask|sep|cls|eot|eod|sot|additional_special|"
    r"extra_special)_tokens?(_ids?)?",
    "names and dates": r"(author|citation|comment|contact|creator|date|description|email|homepage|licen[cs]e|"
    r"model_card|model_name|name|note|organi[sz]ation|repo|repository|source|tag|timestamp|title|url|version)s?|language|"
    r"(converted|created|downloaded|exported|finetuned|fine_tuned|generated|modified|published|released|saved|trained|"
    r"updated|uploaded)(_(at|by|date|from|in|on|time|to|using|with))?|\w+_(date|license|timestamp|url|version)",
    "training tools": r"(adam|deepspeed|logging|lr|optim|optimizer|trl|unsloth|wandb|warmup)_\w+|save_steps|"
    r"(train|eval|training)_(accuracy|args|batch_size|data|dataset|epochs|file|loss|perplexity|runtime|samples|steps)|"
    r"learning_rate|weight_decay|max_steps|num_train_epochs|num_epochs|epochs|seed|(\w+_)?batch_size|fp16|bf16",
}
INSIDE = re.compile(  # words of keys that speak of a model's inside
    r"(^|_)(act|activation|alibi|attention|attn|bias|context|embd|embed|embedding|expert|ffn|gate|head|hidden|key|kv|"
    r"layer|mask|mlp|moe|module|norm|position|query|residual|rope|rotary|scale|scaling|value|window)(s|_|$)"
)

ONLY: dict[str, Any] = {
    "add_cross_attention": False,
    "auto_map": None,  # code of the checkpoint's own
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization": None,
    "quantization_config": None,
    "tie_encoder_decoder": False,
}

_REASONS = {key: why for why, keys in HARMLESS.items() for key in keys.split()}


def why_harmless(key: str, value: Any) -> str | None:
    """Why a key changes nothing in a forward pass; None where that is not known."""
    if key in _REASONS:
        return _REASONS[key]
    why = next((why for why, pattern in PATTERNS.items() if re.fullmatch(pattern, key)), None)
    if why == "dropout":  # a rate, of which a forward pass knows nothing; ESM has a flag of such a name that it reads
        return why if value is False or (type(value) in (int, float) and 0 <= value <= 1) else None
    return None if INSIDE.search(key) and why != "special tokens" else why
