#!/usr/bin/env node
// Writes clusters.json, the example inventory: the same bytes on every machine. Run it again only to change the inventory.
import { writeFileSync } from "node:fs";

let seed = 20140611;
const next = () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};
const between = (low, high) => low + Math.floor(next() * (high - low + 1));
const pick = (items) => items[Math.floor(next() * items.length)];
const weighted = (pairs) => {
  let left = next() * pairs.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [item, weight] of pairs) if ((left -= weight) < 0) return item;
  return pairs[0][0];
};

const providers = {
  openstack: {
    regions: ["dal1", "ams2"],
    images: { centos6: "img-2f41c9", ubuntu12: "img-88d0a1", ubuntu14: "img-c17be2" },
    flavors: {
      small: "m1.small",
      medium: "m1.medium",
      large: "m1.large",
      xlarge: "m1.xlarge",
      "storage-heavy": "d2.large",
    },
  },
  aws: {
    regions: ["us-east-1", "eu-west-1", "us-west-2"],
    images: { centos6: "ami-bc8131d4", ubuntu12: "ami-00615068", ubuntu14: "ami-9eaa1cf6" },
    flavors: {
      small: "m3.medium",
      medium: "m3.large",
      large: "m3.xlarge",
      xlarge: "m3.2xlarge",
      "storage-heavy": "i2.xlarge",
    },
  },
  rackspace: {
    regions: ["iad", "ord"],
    images: { centos6: "f70ed7c7", ubuntu12: "aca656d3", ubuntu14: "09de0a66" },
    flavors: {
      small: "general1-2",
      medium: "general1-4",
      large: "general1-8",
      xlarge: "performance2-30",
      "storage-heavy": "io1-60",
    },
  },
  joyent: {
    regions: ["us-east-2", "eu-ams-1"],
    images: { centos6: "dd31507e", ubuntu12: "d2ba0f30", ubuntu14: "c8b3ea1a" },
    flavors: {
      small: "g3-standard-1",
      medium: "g3-standard-4",
      large: "g3-standard-8",
      xlarge: "g3-highmemory-17",
      "storage-heavy": "g3-highio-60",
    },
  },
};

// A template is a list of node groups: the group's name, the services of each of its nodes, how many, and its hardware.
const hadoopWorker = ["hadoop-hdfs-datanode", "hadoop-yarn-nodemanager"];
const templates = {
  "hadoop-distributed": {
    weight: 46,
    lease: [604800, 2592000],
    groups: [
      ["master", ["hadoop-hdfs-namenode", "hadoop-yarn-resourcemanager", "zookeeper-server"], [1, 1], "large"],
      ["worker", hadoopWorker, [3, 14], "storage-heavy"],
    ],
  },
  "hadoop-hbase": {
    weight: 34,
    lease: [1209600, 7776000],
    groups: [
      ["master", ["hadoop-hdfs-namenode", "hadoop-yarn-resourcemanager", "hbase-master"], [1, 2], "xlarge"],
      ["zookeeper", ["zookeeper-server"], [3, 3], "small"],
      ["worker", [...hadoopWorker, "hbase-regionserver"], [3, 12], "storage-heavy"],
    ],
  },
  "hadoop-hive": {
    weight: 20,
    lease: [604800, 2592000],
    groups: [
      [
        "master",
        ["hadoop-hdfs-namenode", "hadoop-yarn-resourcemanager", "hive-metastore", "hive-server2", "mysql-server"],
        [1, 1],
        "xlarge",
      ],
      ["worker", hadoopWorker, [3, 9], "storage-heavy"],
      ["gateway", ["hive-client", "oozie-client"], [1, 1], "medium"],
    ],
  },
  "hadoop-singlenode": {
    weight: 38,
    lease: [86400, 604800],
    groups: [
      [
        "single",
        [
          "hadoop-hdfs-namenode",
          "hadoop-hdfs-datanode",
          "hadoop-yarn-resourcemanager",
          "hadoop-yarn-nodemanager",
          "zookeeper-server",
        ],
        [1, 1],
        "large",
      ],
    ],
  },
  "spark-yarn": {
    weight: 24,
    lease: [259200, 1209600],
    groups: [
      ["master", ["hadoop-hdfs-namenode", "hadoop-yarn-resourcemanager", "spark-historyserver"], [1, 1], "large"],
      ["worker", [...hadoopWorker, "spark-worker"], [3, 10], "xlarge"],
    ],
  },
  lamp: {
    weight: 44,
    lease: [604800, 5184000],
    groups: [
      ["web", ["apache-httpd", "php"], [1, 4], "small"],
      ["database", ["mysql-server"], [1, 1], "medium"],
    ],
  },
  "nginx-nodejs": {
    weight: 30,
    lease: [604800, 5184000],
    groups: [
      ["balancer", ["haproxy"], [1, 2], "small"],
      ["app", ["nginx", "nodejs"], [2, 6], "medium"],
      ["cache", ["redis-server"], [1, 1], "small"],
    ],
  },
  "tomcat-mysql": {
    weight: 22,
    lease: [1209600, 7776000],
    groups: [
      ["app", ["apache-tomcat", "openjdk-7"], [2, 5], "medium"],
      ["database", ["mysql-server"], [1, 2], "large"],
    ],
  },
  "mongodb-sharded": {
    weight: 16,
    lease: [1209600, 7776000],
    groups: [
      ["router", ["mongodb-mongos"], [1, 2], "small"],
      ["config", ["mongodb-configsvr"], [3, 3], "small"],
      ["shard", ["mongodb-mongod"], [3, 9], "storage-heavy"],
    ],
  },
  elasticsearch: {
    weight: 16,
    lease: [604800, 5184000],
    groups: [
      ["data", ["elasticsearch", "openjdk-7"], [3, 7], "storage-heavy"],
      ["kibana", ["kibana", "nginx"], [1, 1], "small"],
    ],
  },
  "kafka-zookeeper": {
    weight: 14,
    lease: [604800, 5184000],
    groups: [
      ["zookeeper", ["zookeeper-server"], [3, 3], "small"],
      ["broker", ["kafka-server"], [3, 6], "large"],
    ],
  },
};
const owners = [
  [
    "analytics",
    ["clickstream", "attribution", "churn", "sessions", "funnel"],
    ["hadoop-distributed", "hadoop-hive", "spark-yarn", "kafka-zookeeper"],
  ],
  ["search", ["crawl", "index", "suggest", "ranking"], ["elasticsearch", "hadoop-hbase", "hadoop-distributed"]],
  ["payments", ["ledger", "fraud", "invoices", "settlement"], ["tomcat-mysql", "kafka-zookeeper", "hadoop-hbase"]],
  ["storefront", ["catalog", "checkout", "cart", "landing"], ["lamp", "nginx-nodejs", "mongodb-sharded"]],
  ["platform", ["ci", "metrics", "audit-trail", "registry"], ["elasticsearch", "nginx-nodejs", "hadoop-singlenode"]],
  [
    "data-science",
    ["features", "recommend", "forecast", "notebook"],
    ["spark-yarn", "hadoop-singlenode", "hadoop-hive"],
  ],
  ["support", ["helpdesk", "wiki", "status"], ["lamp", "tomcat-mysql"]],
  ["mobile", ["push", "profiles", "sync"], ["mongodb-sharded", "nginx-nodejs", "hadoop-hbase"]],
];
const environments = [
  ["dev", 5],
  ["test", 3],
  ["staging", 2],
  ["production", 4],
];

const clusters = [];
const seen = new Map();
while (clusters.length < 304) {
  const [team, purposes, preferred] = pick(owners);
  const template =
    next() < 0.8 ? pick(preferred) : weighted(Object.entries(templates).map(([name, { weight }]) => [name, weight]));
  const environment = weighted(environments);
  const purpose = pick(purposes);
  const providerName = weighted([
    ["openstack", 5],
    ["aws", 4],
    ["rackspace", 2],
    ["joyent", 1],
  ]);
  const provider = providers[providerName];
  const image = weighted([
    ["centos6", 5],
    ["ubuntu12", 3],
    ["ubuntu14", 2],
  ]);
  const stem = `${team}-${purpose}-${environment}`;
  const number = (seen.get(stem) ?? 0) + 1;
  seen.set(stem, number);
  const id = `${stem}-${String(number).padStart(2, "0")}`;
  const small = environment === "dev" || environment === "test";
  const nodes = templates[template].groups.flatMap(([group, services, [low, high], hardware]) => {
    const count = between(low, small ? Math.ceil((low + high) / 2) : high);
    return Array.from({ length: count }, (_, index) => ({
      name: `${group}-${String(index + 1).padStart(2, "0")}`,
      services,
      hardware: small && hardware === "xlarge" ? "large" : hardware,
      flavor: provider.flavors[small && hardware === "xlarge" ? "large" : hardware],
    }));
  });
  const [shortest, longest] = templates[template].lease;
  clusters.push({
    id,
    name: `${purpose.replaceAll("-", " ")} (${environment}${number > 1 ? ` ${number}` : ""})`,
    spec: {
      template,
      provider: { name: providerName, region: pick(provider.regions) },
      image: { name: image, id: provider.images[image] },
      leaseSeconds: between(shortest / 86400, longest / 86400) * 86400,
      dns: `${environment === "production" ? "" : `${environment}.`}${team}.example.net`,
      config:
        template.startsWith("hadoop") || template.startsWith("spark")
          ? {
              "hdfs-site": { "dfs.replication": small ? 1 : 3 },
              "yarn-site": { "yarn.nodemanager.resource.memory-mb": pick([4096, 8192, 16384, 24576]) },
            }
          : { limits: { nofile: pick([4096, 16384, 65536]) } },
      nodes,
    },
    labels: {
      team,
      env: environment,
      purpose,
      "cost-center": `cc-${4100 + owners.findIndex(([name]) => name === team) * 10 + between(0, 3)}`,
    },
  });
}
clusters.sort((a, b) => (a.id < b.id ? -1 : 1));
const file = new URL("./clusters.json", import.meta.url);
writeFileSync(file, `[\n${clusters.map((cluster) => JSON.stringify(cluster)).join(",\n")}\n]\n`);
console.log(`${clusters.length} clusters, ${clusters.reduce((sum, { spec }) => sum + spec.nodes.length, 0)} nodes`);
