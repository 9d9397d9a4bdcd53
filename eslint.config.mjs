import tseslint from "typescript-eslint";

/** Import directions: services -> all; routing, replication -> shards, infra; shards -> infra; infra -> nothing of ours. */
const never = (folders, why) => ({
  group: folders.map((folder) => `**/${folder}/**`),
  message: why,
});
const directions = (files, folders) => ({
  files,
  rules: {
    "no-restricted-imports": [
      "error",
      {
        patterns: [never(folders, `Import directions: ${files[0]} may not import ${folders.join(", ")}.`)],
      },
    ],
  },
});
const onlyIn = (name) => ({ name, message: `Only infra/${name === "nats" ? "nats" : "postgres"} imports '${name}'.` });

export default tseslint.config(
  { ignores: [".build/", "node_modules/", ".hothot/", ".cache/"] },
  ...tseslint.configs.recommendedTypeChecked.map((c) => ({ ...c, files: ["**/*.ts"] })),
  {
    files: ["**/*.ts"],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/no-floating-promises": "error",
      "@typescript-eslint/no-misused-promises": [
        "error",
        { checksVoidReturn: { attributes: false, arguments: false } },
      ],
      "@typescript-eslint/consistent-type-imports": "error",
      "@typescript-eslint/no-explicit-any": "error",
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true, allowBoolean: true }],
      "@typescript-eslint/require-await": "off",
      "no-restricted-properties": [
        "error",
        { object: "Math", property: "random", message: "Take Random from infra/random." },
        { object: "Date", property: "now", message: "Take Clock from infra/clock." },
      ],
    },
  },
  directions(["infra/**/*.ts"], ["services", "routing", "replication", "shards", "test"]),
  directions(["shards/**/*.ts"], ["services", "routing", "replication", "test"]),
  directions(["replication/**/*.ts"], ["services", "routing", "test"]),
  directions(["routing/**/*.ts"], ["services", "replication", "test"]),
  {
    files: ["services/**/*.ts", "test/**/*.ts"],
    rules: { "no-restricted-imports": ["error", { paths: [onlyIn("nats"), onlyIn("pg")] }] },
  },
  {
    files: [
      "test/**/*.ts",
      "infra/clock.ts",
      "infra/random.ts",
      "infra/local/**/*.ts",
      "services/cli/**/*.ts",
      "services/demo/**/*.ts",
    ],
    rules: { "no-restricted-properties": "off" },
  },
  {
    files: ["test/**/*.ts"],
    rules: {
      "@typescript-eslint/no-floating-promises": [
        "error",
        {
          allowForKnownSafeCalls: [
            { from: "package", name: ["it", "test", "describe", "suite"], package: "node:test" },
          ],
        },
      ],
    },
  },
);
