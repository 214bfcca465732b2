// The service's HTTP API, as far as the page needs it.

/** An error of the API: its own words, the id under which the server's log has it, and the seconds to wait. */
export class Problem extends Error {
  constructor({ type = "error", title = "Error", status = 0, detail = "", instance = "", retry_after: wait = 0 }) {
    super(detail || title);
    Object.assign(this, { type, title, status, instance, wait });
  }
}

const UNREACHABLE = { type: "unreachable", title: "No connection", detail: "The server can't be reached." };

function toProblem(status, text) {
  try {
    return new Problem(JSON.parse(text));
  } catch { // not from us: a proxy's page, say
    return new Problem({ status, title: `Status ${status}`, detail: text.slice(0, 200) });
  }
}

/** @throws {Problem} */
export async function get(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (!response.ok) throw toProblem(response.status, await response.text());
  return response;
}

export async function getJson(url, options) {
  return (await get(url, options)).json();
}

/**
 * Posts a picture, once for all the models. Not fetch, which tells nothing of an upload's progress.
 * @param onProgress called with the share of the upload that is done; 1 means that the server is at work
 * @returns {{replies, failures, elapsed}} of each model that succeeded; problems by model of the others; ms in all
 * @throws {Problem} if none succeeded
 */
export function segment(picture, models, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const started = performance.now();
    request.open("POST", `/segment?${new URLSearchParams({ model: models.join(",") })}`);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / Math.max(1, event.total)));
    request.upload.addEventListener("load", () => onProgress(1));
    request.addEventListener("load", () => {
      if (request.status !== 200) {
        reject(toProblem(request.status, request.responseText));
        return;
      }
      const reply = JSON.parse(request.responseText);
      const { results: replies = [reply], failures = [] } = reply;
      resolve({ replies, failures, elapsed: performance.now() - started });
    });
    request.addEventListener("error", () => reject(new Problem(UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("a newer picture was chosen", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    // Without a type the server looks at the bytes, which are right where a file's name may be wrong.
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(picture);
  });
}

/** The float64 matrix of an NPY file, little-endian and row by row, as /attention sends it. */
export async function getArray(url, options) {
  const buffer = await (await get(url, options)).arrayBuffer();
  const view = new DataView(buffer);
  const wide = view.getUint8(6) > 1; // the format's version 2 has a longer header length
  return new Float64Array(buffer.slice(wide ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true)));
}
