// An image is restored in one piece up to FULL pixels, and beyond by overlapping tiles that are blended where they meet.
// The same arithmetic as engine/predict/tiling.py, so that both give the same image.

export const FULL = 1280 * 720;
export const TILE = 512, OVERLAP = 64;

/** Where tiles begin along a side of `size` pixels; the last one ends where the side ends. */
export function starts(size, tile = TILE, overlap = OVERLAP) {
  const found = [];
  for (let at = 0; at < size - tile; at += tile - overlap) found.push(at);
  found.push(Math.max(size - tile, 0));
  return found;
}

/** Each tile's weights along a side: sin² ramps where it overlaps its neighbours, which sum to 1 everywhere. */
export function windows(size, tile, at) {
  const length = Math.min(tile, size);
  const ramp = (overlap, i) => Math.sin((Math.min((i + 0.5) / Math.max(overlap, 0.5), 1) * Math.PI) / 2) ** 2;
  const all = at.map((start, k) => Float64Array.from({ length }, (_, i) =>
    (k > 0 ? ramp(at[k - 1] + length - start, i) : 1) *
    (k + 1 < at.length ? ramp(start + length - at[k + 1], length - 1 - i) : 1)));
  const total = new Float64Array(size);
  at.forEach((start, k) => all[k].forEach((weight, i) => { total[start + i] += weight; }));
  return all.map((window, k) => window.map((weight, i) => weight / total[at[k] + i]));
}

/** Index of a pixel beyond the end of a side, reflected to and fro without repeating the last one. */
export function reflect(index, size) {
  if (size === 1) return 0;
  const place = index % (2 * (size - 1));
  return Math.min(place, 2 * (size - 1) - place);
}

/** The rectangles that an image is restored by: [{top, left, height, width}]. */
export function cut(height, width) {
  if (height * width <= FULL) return [{ top: 0, left: 0, height, width }];
  const rows = starts(height), columns = starts(width);
  return rows.flatMap((top) => columns.map((left) =>
    ({ top, left, height: Math.min(TILE, height), width: Math.min(TILE, width) })));
}
