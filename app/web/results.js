// From a reply of the API to a result: with its mask as pixels, and what there is of its attention.

import { get, getJson } from "/web/api.js";
import { blankPicture, fetchPicture, readMask } from "/web/picture.js";

/** The picture's file; of one that came by a link, what the server has of it. */
export async function sourceOf(work) {
  if (!work.file) {
    const [first] = work.results.values();
    work.file = await (await get(`/results/${first.id}?format=overlay&alpha=0`)).blob();
  }
  return work.file;
}

/**
 * What the page works with of a reply.
 * @param work {picture}, which becomes the server's where this browser has none of that size
 * @param elapsed ms of the request, if it was for this model alone
 * @returns {{id, model, reply, info, isKept, mask, elapsed}} info is /attention's, or one without blocks and classes
 */
export async function toResult(reply, model, work, elapsed = null) {
  const [info, mask] = await Promise.all([infoOf(reply), readMask(reply.segmentation_mask, reply.image)]);
  const isKept = info !== null;
  // Also where this browser reads a format not at all, or turns the picture another way than the server.
  const { picture } = work;
  const isAnother = picture?.width !== reply.image.width || picture?.height !== reply.image.height;
  // The network sees what lies beneath clear pixels, and no canvas has it.
  if (isKept && (isAnother || picture.isSeeThrough)) work.picture = await fetchPicture(reply.id);
  else if (isAnother) work.picture = blankPicture(reply.image);
  return { id: reply.id, model, reply, info: info ?? noMaps(reply), isKept, mask, elapsed };
}

/** What attention there is; null if the server keeps nothing of the result, or had to make room for newer ones already. */
async function infoOf(reply) {
  if (!reply.links.attention) return reply.links.mask ? noMaps(reply) : null;
  try {
    return await getJson(`/attention/${reply.id}/info`);
  } catch (error) {
    if (error.type !== "result-expired") throw error;
    return null;
  }
}

const noMaps = ({ image }) => ({ image, blocks: [], classes: [] });
