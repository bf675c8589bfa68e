package main

import (
	"context"
	"os"

	"starling/vpcproxy/capture"
)

// checkNetworks tries what lets functions out into networks.
func checkNetworks(_ context.Context, a *app) []finding {
	const name = "networks of functions"
	if os.Geteuid() != 0 {
		return []finding{noteworthy(name, "run the doctor as root", "can only be tried as root")}
	}
	means, err := capture.Choose(a.set.text("node.capture"))
	if err != nil {
		return []finding{noteworthy(name, "use a kernel with CONFIG_NET_NS and either CONFIG_BPF_SYSCALL (from 5.9 on) or CONFIG_NFT_TPROXY, and --capture auto", "functions with a network cannot run here in isolation process: %v", err)}
	}
	return []finding{healthy(name, "captured by %s (isolation process; microVMs capture by themselves, with BPF sk_lookup of their own kernel)", means)}
}
