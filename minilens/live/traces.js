// What a block gives, and how a value of it is replaced: minilens/traces.py in JavaScript.

const SITES = ["resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"];

// The edit that changes nothing.
const untouched = (site, value) => value;

// The marks of one block: at(name, value) is the value to go on with at that site.
const editable = (edit, layer) => (name, value) => edit({ layer, name }, value);
