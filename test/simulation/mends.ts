/**
 * Faults that runs have found in the product and that are not repaired there yet. So that further ones can be found
 * behind them, the simulation's own parts (stores, wiring, restorer) do here what the repair would do; `--plain` runs
 * without. Each entry, and the places that ask for `plain`, go with the product's repair.
 */
export const mends = {
  "foreign-move":
    "Resume settles a moving shard whose move another process of the datacenter drives; that one may call its move off and acknowledge writes, which the settling open then cuts off",
  "own-restore":
    "an owner whose own open cut off its tail never fetches the rows that were undone (it only asks the owner, itself), writes onto the missing rows, and hands them out as copies",
  "node-gone":
    "a node's row counts as gone after leaseMs + marginMs, but its lease lasts until dbDeadMs + leaseMs after its last canary: a move does not ask it to hold, and it goes on serving reads",
} as const;
