/** A fault of the set-up, with the way out of it. */
export class SetupError extends Error {
  constructor(message, wayOut) {
    super(message);
    this.wayOut = wayOut;
  }
}
