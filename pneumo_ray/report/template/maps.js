// Coarse maps of evidence over an image, after common.js.
const OPAQUE = 0.65;

// 256 colours from hexadecimal RGB, one after another.
const colourTable = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));

// A coarse map [h, w] as [rows, columns]: bilinear between the centres of cells, as for the zone means, within the
// network's input (fractions of the image), and 0 elsewhere.
function upsample(map, [h, w], [left, top, right, bottom], rows, columns) {
  const out = new Float32Array(rows * columns);
  for (let y = 0; y < rows; y++) {
    const down = ((y + 0.5) / rows - top) / (bottom - top);
    if (down < 0 || down >= 1) continue;
    const v = Math.min(h - 1, Math.max(0, down * h - 0.5)), y0 = Math.floor(v), y1 = Math.min(h - 1, y0 + 1);
    for (let x = 0; x < columns; x++) {
      const across = ((x + 0.5) / columns - left) / (right - left);
      if (across < 0 || across >= 1) continue;
      const u = Math.min(w - 1, Math.max(0, across * w - 0.5)), x0 = Math.floor(u), x1 = Math.min(w - 1, x0 + 1);
      const upper = map[y0 * w + x0] * (1 - (u - x0)) + map[y0 * w + x1] * (u - x0);
      const lower = map[y1 * w + x0] * (1 - (u - x0)) + map[y1 * w + x1] * (u - x0);
      out[y * columns + x] = upper * (1 - (v - y0)) + lower * (v - y0);
    }
  }
  return out;
}

// How a value is painted: [place of its colour in the table, opacity].
function paintOf(value, limit) {
  const level = Math.min(1, Math.max(0, value / limit));
  return [3 * Math.round(255 * level), OPAQUE * level * (2 - level)];
}
