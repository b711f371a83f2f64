// Text to tokens, exactly as minilens/checkpoint/tokenizer.py does it.

const SURROGATE = /\p{Surrogate}/u;

// GPT-2's alphabet for bytes: a printable Latin-1 character stands for its own byte; the other bytes, in order, have the
// characters from U+0100 on.
const isPrintable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte !== 173);
const LETTERS_OF_BYTES = [];
for (let byte = 0, others = 0; byte < 256; byte += 1) {
  LETTERS_OF_BYTES.push(String.fromCodePoint(isPrintable(byte) ? byte : 256 + others++));
}
const BYTE_OF = new Map(LETTERS_OF_BYTES.map((letter, byte) => [letter, byte]));

class Merges {
  // merges: pairs of symbols, the first to be merged first.
  constructor(merges) {
    this.ranks = new Map(merges.map(([a, b], rank) => [`${a} ${b}`, rank])); // no symbol holds a space
  }

  // The pair of lowest rank is merged, wherever it stands, from left to right; and so on.
  apply(symbols) {
    for (;;) {
      let [best, lowest] = [null, Infinity];
      for (let at = 0; at + 1 < symbols.length; at += 1) {
        const rank = this.ranks.get(`${symbols[at]} ${symbols[at + 1]}`);
        if (rank < lowest) [best, lowest] = [at, rank];
      }
      if (best === null) return symbols;
      const [a, b] = [symbols[best], symbols[best + 1]];
      const merged = [];
      for (let at = 0; at < symbols.length; at += 1) {
        const isPair = symbols[at] === a && symbols[at + 1] === b;
        merged.push(isPair ? a + b : symbols[at]);
        if (isPair) at += 1;
      }
      symbols = merged;
    }
  }
}

// Byte-level BPE (GPT-2, Radford et al. 2019).
class ByteBPE {
  static PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

  // entries: by token; added: the texts that are one token, by their tokens.
  constructor({ entries, merges, added }) {
    this.entries = entries;
    this.vocab = new Map(entries.map((entry, token) => [entry, token]));
    this.merges = new Merges(merges);
    this.added = new Map(added);
    this.words = new Map();
  }

  encode(text) {
    return this.split(text).flatMap((part) => {
      if (this.added.has(part)) return [this.added.get(part)];
      return (part.match(ByteBPE.PIECES) ?? []).flatMap((word) => this.wordIds(word));
    });
  }

  // The text, cut before and after each added token; of several that begin at one place the longest is taken.
  split(text) {
    const texts = [...this.added.keys()].sort((a, b) => b.length - a.length);
    if (texts.length === 0) return [text];
    const escaped = texts.map((each) => each.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
    return text.split(new RegExp(`(${escaped.join("|")})`, "u"));
  }

  wordIds(word) {
    if (!this.words.has(word)) {
      const letters = [...new TextEncoder().encode(word)].map((byte) => LETTERS_OF_BYTES[byte]);
      const known = letters.filter((letter) => this.vocab.has(letter));
      this.words.set(word, this.merges.apply(known).map((symbol) => this.vocab.get(symbol)));
    }
    return this.words.get(word);
  }

  decode(tokens) {
    const bytes = tokens.flatMap((token) => {
      const entry = this.entries[token] ?? "";
      const isText = [...this.added.values()].includes(token) || ![...entry].every((letter) => BYTE_OF.has(letter));
      return isText ? [...new TextEncoder().encode(entry)] : [...entry].map((letter) => BYTE_OF.get(letter));
    });
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }

  // The text with tokens written after it.
  continued(text, tokens) {
    return text + this.decode(tokens);
  }

  hint() {
    return null;
  }
}

// CTRL's BPE of words (Sennrich et al. 2016). A word is what stands between white space, with one newline after it if
// there is one; other white space is lost. `x@@` is a piece that the next one continues.
class WordBPE {
  static WORD = /<unk>|(?:(?!<unk>)\P{White_Space})+\n?/gu;

  constructor({ entries, merges, codes }) {
    this.entries = entries;
    this.vocab = new Map(entries.map((entry, token) => [entry, token]));
    this.merges = new Merges(merges);
    this.codes = codes;
    this.words = new Map([["<unk>", [this.vocab.get("<unk>")]]]);
  }

  encode(text) {
    return (text.match(WordBPE.WORD) ?? []).flatMap((word) => this.wordIds(word));
  }

  wordIds(word) {
    if (!this.words.has(word)) {
      const letters = [...word];
      letters.push(`${letters.pop()}</w>`);
      const symbols = this.merges.apply(letters);
      const last = symbols.pop();
      const pieces = [...symbols.map((symbol) => `${symbol}@@`), last.endsWith("</w>") ? last.slice(0, -"</w>".length) : last];
      this.words.set(word, pieces.map((piece) => this.vocab.get(piece) ?? this.vocab.get("<unk>")));
    }
    return this.words.get(word);
  }

  decode(tokens) {
    return tokens.map((token) => this.entries[token]).join(" ").replaceAll("@@ ", "").trim();
  }

  continued(text, tokens) {
    return `${text} ${this.decode(tokens)}`;
  }

  // Advice for a text that the model was not trained for.
  hint(text) {
    const [first] = this.encode((text.match(WordBPE.WORD) ?? [""])[0]);
    if (this.codes.length === 0 || this.codes.includes(this.entries[first])) return null;
    return `CTRL was trained on texts that begin with a control code (such as ${this.codes.slice(0, 3).join(", ")}); this one does not.`;
  }
}
