// Deflated bytes (RFC 1950, 1951) at once, without a stream: patterns are small and the wall draws hundreds.
const inflate = (() => {
  const lengths = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
  const distances = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577];
  const order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
  const tree = sizes => {  // canonical Huffman: how many codes of each length, and their symbols in order
    const count = new Uint16Array(16), symbols = new Uint16Array(sizes.length), at = new Uint16Array(16);
    sizes.forEach(n => { count[n]++; }); count[0] = 0;
    for (let i = 1; i < 16; i++) at[i] = at[i - 1] + count[i - 1];
    sizes.forEach((n, symbol) => { if (n) symbols[at[n]++] = symbol; });
    return { count, symbols };
  };
  const fixed = [tree([...Array(288).keys()].map(i => i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8)), tree(Array(30).fill(5))];
  return (input, size) => {
    const out = new Uint8Array(size); let from = 2, to = 0, held = 0, have = 0;  // two bytes of zlib's header
    const bits = n => {
      while (have < n) { if (from >= input.length) throw new Error("deflated bytes end too soon"); held |= input[from++] << have; have += 8; }
      const value = held & ((1 << n) - 1); held >>>= n; have -= n; return value;
    };
    const symbol = ({ count, symbols }) => {
      let code = 0, first = 0, index = 0;
      for (let n = 1; n < 16; n++) {
        code |= bits(1); const here = count[n];
        if (code - first < here) return symbols[index + code - first];
        index += here; first = (first + here) << 1; code <<= 1;
      }
      throw new Error("not a deflated code");
    };
    const own = () => {
      const literals = bits(5) + 257, places = bits(5) + 1, used = bits(4) + 4, sizes = Array(19).fill(0);
      for (let i = 0; i < used; i++) sizes[order[i]] = bits(3);
      const lens = tree(sizes), all = [];
      while (all.length < literals + places) {
        const s = symbol(lens);
        if (s < 16) all.push(s); else { const value = s === 16 ? all[all.length - 1] : 0, times = s === 16 ? 3 + bits(2) : s === 17 ? 3 + bits(3) : 11 + bits(7); for (let i = 0; i < times; i++) all.push(value); }
      }
      return [tree(all.slice(0, literals)), tree(all.slice(literals, literals + places))];
    };
    for (let last = 0; !last;) {
      last = bits(1); const kind = bits(2);
      if (kind === 0) { held = have = 0; const n = input[from] | input[from + 1] << 8; from += 4; out.set(input.subarray(from, from + n).subarray(0, size - to), to); from += n; to += n; continue; }
      const [literal, place] = kind === 1 ? fixed : own();
      for (let s; (s = symbol(literal)) !== 256;) {
        if (s < 256) { out[to++] = s; continue; }
        const i = s - 257, n = lengths[i] + bits(i < 8 || i === 28 ? 0 : (i - 4) >> 2), d = symbol(place), back = distances[d] + bits(d < 4 ? 0 : (d - 2) >> 1);
        for (let k = 0; k < n; k++, to++) out[to] = out[to - back];
      }
    }
    return out;
  };
})();
