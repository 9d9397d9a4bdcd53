/** The operations that a group has without a catalog file, in the file's own form. */
export const builtInCatalog = {
  operations: {
    create: {
      stages: [
        // What exists at the provider must be known to whoever goes on, so the first attempt's machines are not made twice.
        { name: "CREATE", checkpoint: true },
        { name: "CONFIRM" },
        { name: "BOOTSTRAP" },
        { name: "INSTALL", checkpoint: true },
        { name: "CONFIGURE" },
        { name: "INITIALIZE" },
        { name: "START" },
      ],
    },
    configure: { stages: [{ name: "CONFIGURE" }] },
    start: { stages: [{ name: "START" }] },
    stop: { stages: [{ name: "STOP" }] },
    restart: { stages: [{ name: "STOP" }, { name: "START" }] },
    delete: { stages: [{ name: "DELETE" }] },
  },
} as const;
