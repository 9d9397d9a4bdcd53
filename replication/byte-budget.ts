/** Bytes that several keepers of things in memory share. */
export class ByteBudget {
  constructor(private left: number) {}

  /** @returns false, and takes nothing, where so much is not left */
  take(bytes: number): boolean {
    if (bytes > this.left) return false;
    this.left -= bytes;
    return true;
  }

  give(bytes: number): void {
    this.left += bytes;
  }
}
