import { shapes, type TableShape } from "./rows.js";

/** A table whose rows a snapshot brings, and how it is paged. */
export interface CopyTable {
  readonly name: string;
  /** Columns that travel. */
  readonly columns: readonly string[];
  readonly key: readonly string[];
  /** In the order of the pages; together they name one row. */
  readonly page: readonly { readonly column: string; readonly type: "text" | "bigint" }[];
  /** Further condition that lets an index be used. */
  readonly where: string;
  /** Rows have (changed_epoch, changed_position). */
  readonly placed: boolean;
  /** Rows are the same in every copy that is at the same place: no datacenter removes some by itself. */
  readonly compared: boolean;
}

const text = (column: string) => ({ column, type: "text" as const });
const bigint = (column: string) => ({ column, type: "bigint" as const });

function copyTable(
  shape: TableShape,
  page: CopyTable["page"],
  options: { readonly where?: string; readonly compared?: boolean; readonly local?: readonly string[] } = {},
): CopyTable {
  return {
    name: shape.table,
    columns: shape.columns.filter((column) => options.local?.includes(column) !== true),
    key: shape.key,
    page,
    where: options.where ?? "true",
    placed: true,
    compared: options.compared ?? true,
  };
}

/** Job ids begin with their shard: with this condition their index finds those of one shard. `shard` is SQL of an int. */
export const jobsOf = (id: string, shard: string): string =>
  `${id} >= 'j' || ${shard} || '-' AND ${id} < 'j' || ${shard} || '.'`;

/** All tables that travel, in the order in which a snapshot brings them. `$1` is the shard. */
export const copyTables: readonly CopyTable[] = [
  copyTable(shapes.clusters, [text("tenant"), text("id")]),
  copyTable(shapes.jobs, [text("id")], {
    where: jobsOf("id", "$1::int"),
    local: ["stage"],
  }),
  copyTable(shapes.workers, [text("tenant"), text("id")]),
  copyTable(shapes.documents, [text("kind"), text("id")], { compared: false }),
  copyTable(shapes.keys, [bigint("changed_position"), text("tenant"), text("key")], { compared: false }),
  {
    name: "history",
    columns: [
      "shard",
      "epoch",
      "at",
      "from_dc",
      "to_dc",
      "kind",
      "reason",
      "by",
      "phases_ms",
      "drained",
      "divergent",
      "last_position",
    ],
    key: ["shard", "epoch"],
    page: [bigint("epoch")],
    where: "true",
    placed: false,
    compared: false,
  },
];

/** `(a, b) > ($n::text, $m::text)`, of a table's page columns. */
export function pageCompare(table: CopyTable, operator: ">" | "<=", firstParameter: number): string {
  const columns = table.page.map((each) => each.column).join(", ");
  const values = table.page.map((each, index) => `$${firstParameter + index}::${each.type}`).join(", ");
  return `(${columns}) ${operator} (${values})`;
}

/** A row, as text the same in every copy (in the time zone UTC). */
export const rowJson = (alias: string): string => `row_to_json(${alias})`;
/** A number of 60 bits over a row's text. */
export const rowHash = (alias: string): string =>
  `('x' || substr(md5(${rowJson(alias)}::text), 1, 15))::bit(60)::bigint::numeric`;
