// Calls of the server, the errors that it answers with, and JSON whose integers may be larger than JavaScript's.

/** What the server refused, in its own words; `explain` in words.js says it in the page's language. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0 where no server answered.
   * @param {{message?: string, param?: string, where?: string, given?: string, expected?: string, cure?: string,
   *   kind?: string}} parts
   */
  constructor(status, parts = {}) {
    super(parts.message ?? `HTTP ${status}`);
    this.status = status;
    this.kind = parts.kind ?? "";
    this.where = parts.where ?? parts.param ?? "";
    this.given = parts.given ?? "";
    this.expected = parts.expected ?? "";
    this.cure = parts.cure ?? "";
  }
}

const MARK = "\u0000big:";

/** JSON in which a BigInt stands as a plain number, whatever its size. */
export function exactJson(value) {
  const text = JSON.stringify(value, (_key, part) => (typeof part === "bigint" ? `${MARK}${part}` : part));
  return text.replaceAll(/"\\u0000big:(-?\d+)"/g, "$1");
}

/** The value of a JSON text; integers beyond 2^53 are BigInts. */
export function exactParse(text) {
  return JSON.parse(text, (_key, part, context) => {
    const inexact = typeof part === "number" && !Number.isSafeInteger(part) && /^-?\d+$/.test(context?.source ?? "");
    return inexact ? BigInt(context.source) : part;
  });
}

/**
 * Send a request; gives the parsed JSON of the answer, or null where it has none.
 *
 * @param {string} method
 * @param {string} path such as "/v1/jobs".
 * @param {unknown} [body] JSON; a Blob or an ArrayBuffer is sent as it is.
 * @param {{signal?: AbortSignal, headers?: Record<string, string>, keepalive?: boolean}} [more]
 * @throws {ApiError}
 */
export async function call(method, path, body, more = {}) {
  const headers = { ...more.headers };
  let payload = body;
  if (body instanceof Blob || body instanceof ArrayBuffer) {
    headers["content-type"] ??= (body instanceof Blob && body.type) || "application/octet-stream";
  } else if (body !== undefined) {
    headers["content-type"] = "application/json";
    payload = exactJson(body);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: payload, signal: more.signal, keepalive: more.keepalive });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { kind: "Offline", message: String(error.message) });
  }
  if (answer.status === 401) {
    location.assign("/login");
  }
  const text = await answer.text();
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const found = isJson && text ? exactParse(text) : null;
  if (!answer.ok) {
    const parts = found?.error ?? found ?? {};
    throw new ApiError(answer.status, typeof parts === "object" ? parts : { message: String(parts) });
  }
  return found;
}

export const api = {
  get: (path, more) => call("GET", path, undefined, more),
  post: (path, body, more) => call("POST", path, body, more),
  put: (path, body, more) => call("PUT", path, body, more),
  patch: (path, body, more) => call("PATCH", path, body, more),
  del: (path, more) => call("DELETE", path, undefined, more),
};

/**
 * Upload a picture for a request.
 *
 * @param {Blob} blob
 * @returns {Promise<{name: string, width: number, height: number}>} its name is what a request says.
 */
export const attach = (blob) => api.post("/v1/attachments", blob);
