// Reads the server's masks, which are grayscale PNGs of 8 bits without interlacing. Not by a canvas: browsers that
// hide who somebody is (Tor Browser, Brave, Firefox's resistFingerprinting) hand out noise for the pixels on one.

const SIGNATURE = 8; // bytes
const AROUND = 12; // bytes of a chunk beside its data: its length, its name and its checksum

/** @returns {{width, height, data: Uint8Array}} */
export async function readGray(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [width, height] = [view.getUint32(SIGNATURE + 8), view.getUint32(SIGNATURE + 12)]; // IHDR comes first
  const packed = [];
  for (let at = SIGNATURE; at < bytes.length; at += AROUND + view.getUint32(at)) {
    const isData = String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT";
    if (isData) packed.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const unpacked = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  return { width, height, data: unfilter(new Uint8Array(await new Response(unpacked).arrayBuffer()), width, height) };
}

/** Each row begins with the number of its filter, by which a byte is told from those to the left and above. */
function unfilter(lines, width, height) {
  const data = new Uint8Array(width * height);
  for (let y = 0, from = 0, to = 0; y < height; y += 1) {
    const predict = FILTERS[lines[from]];
    from += 1;
    for (let x = 0; x < width; x += 1, from += 1, to += 1) {
      const left = x ? data[to - 1] : 0;
      const above = y ? data[to - width] : 0;
      data[to] = lines[from] + predict(left, above, x && y ? data[to - width - 1] : 0);
    }
  }
  return data;
}

const FILTERS = [() => 0, (left) => left, (left, above) => above, (left, above) => (left + above) >> 1, paeth];

/** Whichever of the three is nearest to left + above - corner; the first of equals. */
function paeth(left, above, corner) {
  const toLeft = Math.abs(above - corner);
  const toAbove = Math.abs(left - corner);
  const toCorner = Math.abs(left + above - 2 * corner);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}
