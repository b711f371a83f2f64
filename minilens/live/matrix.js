// x @ W for the matrices of a model, as a small program in WebAssembly: it multiplies four numbers at once, which
// JavaScript cannot ask for, and is about ten times as quick. The program is put together below from its instructions.
// Each word there is one of them, as the specification of WebAssembly has it: the bytes of what it works on, then its own.

const get = (local) => [0x20, local];
const set = (local, value) => [...value, 0x21, local];
const constant = (number) => [0x41, number]; // of i32, below 64
const sum = (a, b) => [...a, ...b, 0x6a]; // i32.add
const isBelow = (a, b) => [...a, ...b, 0x49]; // i32.lt_u
const loopWhile = (condition, ...body) => [0x03, 0x40, ...body.flat(), ...condition, 0x0d, 0, 0x0b]; // once at least
const zeros = [0xfd, 0x0c, ...new Array(16).fill(0)]; // v128.const
const load = (address) => [...address, 0xfd, 0x00, 2, 0]; // v128.load: the four numbers from there on
const plusFour = (a, b) => [...a, ...b, 0xfd, 0xe4, 0x01]; // f32x4.add
const timesFour = (a, b) => [...a, ...b, 0xfd, 0xe6, 0x01]; // f32x4.mul
const oneOf = (four, which) => [...four, 0xfd, 0x1f, which]; // f32x4.extract_lane
const plusOne = (a, b) => [...a, ...b, 0x92]; // f32.add
const together = (four) => plusOne(plusOne(oneOf(four, 0), oneOf(four, 1)), plusOne(oneOf(four, 2), oneOf(four, 3)));
const store = (address, which, value) => [...address, ...value, 0x38, 2, 4 * which]; // f32.store

const GIVEN = ["x", "x_end", "x_row", "W", "W_end", "W_column", "out", "out_row"]; // addresses and sizes, in bytes
const PLACES = ["row", "row_end", "place", "w0", "w1", "w2", "w3"]; // addresses, too
const FOURS = ["s0", "s1", "s2", "s3"]; // sums of every fourth product

// Four columns of W are taken at a time, and every row of x with them. Whatever stands beside it, an output is the same
// sum in the same order: equal columns give equal outputs.
function instructions() {
  const local = Object.fromEntries([...GIVEN, ...PLACES, ...FOURS].map((name, at) => [name, get(at)]));
  const put = (name, value) => set(local[name][1], value);
  const forward = (name, by) => put(name, sum(local[name], by));
  const columns = [0, 1, 2, 3];
  return loopWhile(isBelow(local.W, local.W_end),
    put("row", local.x),
    put("place", local.out),
    loopWhile(isBelow(local.row, local.x_end),
      put("row_end", sum(local.row, local.x_row)),
      put("w0", local.W),
      ...[1, 2, 3].map((c) => put(`w${c}`, sum(local[`w${c - 1}`], local.W_column))),
      ...columns.map((c) => put(`s${c}`, zeros)),
      loopWhile(isBelow(local.row, local.row_end),
        ...columns.map((c) => put(`s${c}`, plusFour(local[`s${c}`], timesFour(load(local.row), load(local[`w${c}`]))))),
        ...["row", "w0", "w1", "w2", "w3"].map((name) => forward(name, constant(16)))),
      ...columns.map((c) => store(local.place, c, together(local[`s${c}`]))),
      forward("place", local.out_row)),
    ...columns.map(() => forward("W", local.W_column)),
    forward("out", constant(16)));
}

// The program as a file: of what kind its one function is, the memory that it works on, its name, its code.
function program() {
  const [I32, V128] = [0x7f, 0x7b];
  const size = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...size(n >> 7)]);
  const sized = (bytes) => [...size(bytes.length), ...bytes];
  const name = (text) => sized([...new TextEncoder().encode(text)]);
  const section = (kind, bytes) => [kind, ...sized([1, ...bytes])]; // of one entry
  const locals = [2, PLACES.length, I32, FOURS.length, V128];
  return Uint8Array.from([
    0, ...new TextEncoder().encode("asm"), 1, 0, 0, 0,
    ...section(1, [0x60, ...sized(GIVEN.map(() => I32)), 0]),
    ...section(2, [...name("page"), ...name("memory"), 2, 0, 1]),
    ...section(3, [0]),
    ...section(7, [...name("multiply"), 0, 0]),
    ...section(10, sized([...locals, ...instructions(), 0x0b])),
  ]);
}


// ---- The memory: all numbers of a model, then some rows of x, then what comes of them

const ROWS = 16; // of x that are multiplied in one go
const toFour = (n) => 4 * Math.ceil(n / 4);
let room = null; // {memory, multiply, x, out}, where x and out are places for rows

// An array for the numbers of tensors of these shapes. Where a browser has no WebAssembly, JavaScript does it all.
function roomFor(shapes) {
  const count = shapes.map((shape) => shape.reduce((a, b) => a * b, 1)).reduce((a, b) => a + b);
  const widest = toFour(Math.max(...shapes.flat()));
  const after = toFour(count);
  room = null;
  try {
    const memory = new WebAssembly.Memory({ initial: Math.ceil((4 * (after + 2 * ROWS * widest)) / 65536) });
    const { multiply } = new WebAssembly.Instance(new WebAssembly.Module(program()), { page: { memory } }).exports;
    const part = (from) => new Float32Array(memory.buffer, 4 * from, ROWS * widest);
    room = { memory, multiply, x: part(after), out: part(after + ROWS * widest) };
    return new Float32Array(memory.buffer, 0, count);
  } catch {
    return new Float32Array(count);
  }
}

const isInRoom = ({ columns }) => columns.buffer === room?.memory.buffer;

// out = x @ W. The last numbers of a row are multiplied four at a time as well: what x lacks for that is 0 there.
function multiplied(x, { shape: [d_in, d_out], columns }, out) {
  const [x_row, out_row] = [toFour(d_in), toFour(d_out)];
  for (let first = 0; first < x.length / d_in; first += ROWS) {
    const n = Math.min(ROWS, x.length / d_in - first);
    for (let row = 0; row < n; row += 1) {
      room.x.set(x.subarray((first + row) * d_in, (first + row + 1) * d_in), row * x_row);
      room.x.fill(0, row * x_row + d_in, (row + 1) * x_row);
    }
    const [from, W, to] = [room.x, columns, room.out].map(({ byteOffset }) => byteOffset);
    room.multiply(from, from + 4 * n * x_row, 4 * x_row, W, W + 4 * columns.length, 4 * d_in, to, 4 * out_row);
    for (let row = 0; row < n; row += 1) out.set(room.out.subarray(row * out_row, row * out_row + d_out), (first + row) * d_out);
  }
}
