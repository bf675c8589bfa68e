package main

import (
	"context"
	"os"

	"starling/vpcproxy/capture"
)

// checkNetworks tries what lets functions out into networks.
func checkNetworks(context.Context, *app) []finding {
	const name = "networks of functions"
	if os.Geteuid() != 0 {
		return []finding{noteworthy(name, "run the doctor as root", "can only be tried as root")}
	}
	if err := capture.Supported(); err != nil {
		return []finding{noteworthy(name, "use a kernel from 5.9 on with CONFIG_BPF_SYSCALL and CONFIG_NET_NS", "functions with a network cannot run here: %v", err)}
	}
	return []finding{healthy(name, "captured by BPF sk_lookup (isolation process; microVMs capture by themselves)")}
}
