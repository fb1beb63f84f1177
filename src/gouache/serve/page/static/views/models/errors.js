// Why a file or a download is refused, in the page's language: what the server found, by its kind and a mark in its words.
import { bytes, explain, say } from "../../app/words.js";

const MARKS = [
  [/web page or an error message/, "models.bad_page"],
  [/Git LFS pointer/, "models.bad_pointer"],
  [/empty file/, "models.bad_empty"],
  [/tar archive/, "models.bad_tar"],
  [/sha256/, "models.bad_sum"],
  [/name that is taken/, "models.taken"],
  [/GOUACHE_OFFLINE/, "models.hub_offline"],
  [/gated model/, "models.hub_gated"],
  [/no such repository/, "models.hub_none"],
  [/repository without weights/, "models.hub_empty"],
  [/on its way/, "models.hub_busy"],
  [/whole disk or home/, "models.folder_whole"],
  [/no folder that can be read/, "models.folder_none"],
  [/from elsewhere/, "models.folder_elsewhere"],
  [/, alone$|parts of a model/, "models.bad_part"],
];
const KINDS = {
  CorruptCheckpoint: "models.bad_damaged",
  UnsafeCheckpoint: "models.bad_unsafe",
  UnknownFamily: "models.bad_family",
  IncompatibleCheckpoint: "models.bad_fit",
  NoRoom: "models.no_room",
  HubError: "models.hub_failed",
  NotAllowed: "models.not_allowed",
};

/**
 * A sentence about an error of adding or loading models.
 *
 * @param {{kind?: string, given?: string, where?: string, status?: number, message?: string}} error an `ApiError`, or the
 *   parts of an error that the server stored.
 */
export function explainModel(error) {
  const given = error.given ?? "";
  const mark = MARKS.find(([pattern]) => pattern.test(given));
  const key = mark?.[1] ?? KINDS[error.kind];
  if (error.where === "name") return say("models.bad_name");
  if (error.where === "repo") return say("models.bad_repo");
  if (!key || error.status === 0) return error.status === undefined ? error.message : explain(error);
  return say(key, { given, name: error.where ?? "", free: bytes(2 ** 20 * (Number.parseInt(given, 10) || 0)) });
}
