package main

import "time"

// nodeSettings are those of the commands that start a node; each has its flag there ('starling node --data').
// Adding one is a line here; the file, the environment and 'config show' follow.
var nodeSettings = []setting{
	{key: "node.data", def: "/var/lib/starling", usage: "folder of everything the node keeps"},
	{key: "node.name", def: "", usage: "name of the node for people (default: host name)"},
	{key: "node.listen", def: "0.0.0.0:7400", usage: "host:port of the QUIC endpoint, for nodes and QUIC clients"},
	{key: "node.advertise", def: "", usage: "host:port under which other nodes reach the endpoint (default: listen)"},
	{key: "node.http", def: "127.0.0.1:8080", usage: "host:port of the HTTP bridge"},
	{key: "node.tls-cert", def: "", usage: "certificate file of the bridge; with it come HTTPS, HTTP/2 and HTTP/3"},
	{key: "node.tls-key", def: "", usage: "key file of tls-cert"},
	{key: "node.admin", def: "127.0.0.1:8081", usage: "host:port of metrics, health and profiles"},
	{key: "node.roles", def: "all", usage: "what the node does: manager, frontend, scheduler, host, gateway or all"},
	{key: "node.zone", def: "", usage: "failure domain of the node"},
	{key: "node.join", def: "", usage: "host:port of members to join, comma-separated"},
	{key: "node.token", def: "", usage: "join token; better in STARLING_NODE_TOKEN", secret: true},
	{key: "node.partitions", def: 64, usage: "partitions to cut the key space into, when the cluster is made"},
	{key: "node.bucket", def: "", usage: "where code is kept: file:///folder or s3://name (default: in data)"},
	{key: "node.code-cache", def: 10 << 10, usage: "MiB of unpacked code kept on this host"},
	{key: "node.memory", def: 0, usage: "MiB that instances may claim on this host (default: 80% of the machine)"},
	{key: "node.instances", def: 4000, usage: "instances on this host at once"},
	{key: "node.procs", def: 0, usage: "cores the node itself uses at once (default: GOMAXPROCS, or on a host half of the machine's)"},
	{key: "node.pool", def: 4, usage: "warm sandboxes kept for each runtime"},
	{key: "node.awake", def: 100 * time.Millisecond, usage: "how long idle cores stay awake from a start on, at full power, to make it faster; 0 for never"},
	{key: "node.isolation", def: "process", usage: "what this host isolates functions with: process, gvisor, kata, or several of them, such as process,gvisor"},
	{key: "node.pool-strong", def: 1, usage: "the same of every isolation but process, each of which holds more memory"},
	{key: "node.allow-shared-kernel", def: false, usage: "functions of several accounts may share this machine's kernel (isolation process)"},
	{key: "node.runsc", def: "", usage: "gVisor's runsc (default: beside starling, then in PATH)"},
	{key: "node.kata-images", def: "", usage: "folder of what microVMs boot, made by 'make guest-images' (default: the user's cache)"},
	{key: "node.kata-memory", def: 256, usage: "MiB of the largest function in a microVM"},
	{key: "node.handover", def: "", usage: "directory of this cluster in which the gateways of one machine find each other: 'starling node drain' of one gives its live connections to another"},
	{key: "node.uplinks", def: "", usage: "file that plugs a gateway into networks, read again at SIGHUP: {\"account/network\": {\"bridge\": \"br-db\", \"addresses\": [\"10.0.0.9/24\"]}}; all of it: 'starling node uplinks --help'"},
	{key: "node.python", def: "/usr/bin/python3", usage: "interpreter of runtime python3.11"},
	{key: "node.node", def: "/usr/bin/node", usage: "interpreter of runtime nodejs20"},
	{key: "node.record", def: "", usage: "folder to record calls to, for 'starling analyze' (default: none are recorded)"},
	{key: "node.scale-config", def: "", usage: "file with settings of the scaling policy, as 'starling analyze --tune' writes it (default: built in)"},
	{key: "node.audit", def: "", usage: "file to write every grant and accepted lease to, for checkers of tests (default: none are written)"},
	{key: "node.log-level", def: "info", usage: "debug, info, warn or error"},
	{key: "node.log-format", def: "auto", usage: "text, json, or auto: text on a terminal"},
	{key: "node.drain", def: 30 * time.Second, usage: "longest wait for calls in flight when stopping"},
}
