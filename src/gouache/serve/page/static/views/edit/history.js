// Undo and redo with bounded memory. An entry knows how to go back and forth and how many bytes it holds.

export class History {
  constructor(most = 96 * 2 ** 20) {
    this.most = most;
    this.done = [];
    this.undone = [];
  }

  get bytes() {
    return [...this.done, ...this.undone].reduce((sum, entry) => sum + entry.bytes, 0);
  }

  /** Add what has just happened. With a `key`, changes in quick succession become one entry (a slider that moves). */
  add(entry) {
    this.undone = [];
    const last = this.done.at(-1);
    const now = Date.now();
    if (entry.key && last?.key === entry.key && now - last.time < 1000) {
      last.redo = entry.redo;
      last.time = now;
      return;
    }
    this.done.push({ ...entry, time: now });
    // The newest stays, however large it is: a step that can't be taken back surprises more than memory does.
    while (this.done.length > 1 && this.bytes > this.most) this.done.shift();
  }

  undo() {
    const entry = this.done.pop();
    if (!entry) return false;
    entry.undo();
    this.undone.push(entry);
    return true;
  }

  redo() {
    const entry = this.undone.pop();
    if (!entry) return false;
    entry.redo();
    this.done.push(entry);
    return true;
  }
}
