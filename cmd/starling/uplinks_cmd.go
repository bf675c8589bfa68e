package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/cmd/starling/node"
	"starling/frontend/protocol"
)

const (
	uplinksPatience = 2 * time.Second
	uplinksMax      = 16 << 20 // bytes of one node's answer
)

// uplinksHelp is the file of --uplinks, for people.
const uplinksHelp = `The file of --uplinks plugs a gateway into networks, by account/network, or by internet:

  {
    "acme/db":    {"namespace": "acme-db"},
    "acme/plant": {"device": "eth1", "addresses": ["10.1.0.9/24"], "gateway": "10.1.0.1"},
    "zeta/db":    {"vlan": {"parent": "eth2", "id": 40}, "addresses": ["10.2.0.9/24"], "mtu": 1400},
    "zeta/lab":   {"bridge": "br-lab", "addresses": ["10.3.0.9/24"], "routes": [{"to": "10.4.0.0/16", "via": "10.3.0.1"}]},
    "yoyo/lan":   {"macvlan": {"parent": "eth3"}, "addresses": ["192.168.7.9/24"], "dns": ["192.168.7.1"]},
    "internet":   {"namespace": "host", "dns": ["9.9.9.9"]}
  }

namespace  one that you made and connected: a name below /run/netns, or a path; "host" for internet alone
device     an interface that is there (a network card, a WireGuard device), without addresses: it is moved into the
           network's namespace and given back when the gateway ends
vlan       an 802.1Q device on an interface that stays where it is; the kernel needs its module 8021q
bridge     a pair of veths, of which one end is a port of your bridge
macvlan    a macvlan on an interface that stays where it is

All but a namespace take addresses (the gateway's own, with the length of their range), gateway or routes (next hops
within those ranges), and mtu. dns are the name servers where the network lists none.`

func nodeUplinks(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "uplinks", Short: "Show how gateways are plugged into networks, and what fails (admin)", Args: cobra.NoArgs,
		Long: "Uplinks asks every admin address (--admin) how its gateway is plugged into networks. A node reads its file again at SIGHUP;\nnetworks that stay as they are keep their connections, and a file that is wrong in any line changes nothing.\n\n" + uplinksHelp,
		Example: `  starling node uplinks --admin http://10.0.0.3:8081
  starling doctor --uplinks /etc/starling/uplinks.json         # is the file right?
  kill -HUP $(systemctl show -p MainPID --value starling)      # read it again`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.uplinks(cmd.Context()) }}
}

// gatewayUplinks is what one admin address answers.
type gatewayUplinks struct {
	Admin string `json:"admin"`
	protocol.Uplinks
}

func (a *app) uplinks(ctx context.Context) error {
	var list []gatewayUplinks
	problems := map[string]string{}
	for _, admin := range a.set.list("admin") {
		g := gatewayUplinks{Admin: admin}
		if err := askAdmin(ctx, admin, "uplinks", uplinksPatience, uplinksMax, &g.Uplinks); err != nil {
			problems[admin] = err.Error()
			continue
		}
		list = append(list, g)
	}
	if len(list) == 0 {
		return starling.Errorf(starling.Unavailable, "show uplinks", "no admin address answered: %v", problems)
	}
	for admin, why := range problems {
		fmt.Fprintf(a.err, "Without %s: %s\n", admin, printable(why))
	}
	for _, g := range list {
		if g.Refused != "" {
			fmt.Fprintf(a.err, "%s goes on with the uplinks it had: %s\n", g.Admin, printable(g.Refused))
		}
	}
	return a.print(list, func(t table.Writer) {
		t.AppendHeader(table.Row{"network", "by", "state", "since", "addresses", "namespace", "because"})
		for _, g := range list {
			for _, u := range g.Uplinks.Uplinks {
				t.AppendRow(table.Row{printable(u.Network), printable(u.How), u.State, ago(u.Since.Unix()), orDash(strings.Join(u.Addresses, " ")), orDash(printable(u.Namespace)),
					orDash(printable(strings.TrimSpace(u.Reason + " " + u.Note)))})
			}
		}
	})
}

// checkUplinks reads the file of a gateway, and asks the node of this machine what of it is not plugged in.
func checkUplinks(ctx context.Context, a *app) []finding {
	const name = "uplinks of the gateway"
	path := a.set.text("node.uplinks")
	if path == "" {
		return nil
	}
	uplinks, err := node.ReadUplinks(path)
	if err != nil {
		return []finding{broken(name, "mend that line; 'starling node uplinks --help' shows the file", "%v", err)}
	}
	out := []finding{healthy(name, "%s is right in every line: %d networks", path, len(uplinks))}
	var now protocol.Uplinks
	if err := askAdmin(ctx, "http://"+reachable(a.set.text("node.admin")), "uplinks", uplinksPatience, uplinksMax, &now); err != nil {
		return append(out, noteworthy(name, "start the node, or name its admin address (--admin)", "no node here says how it is plugged in"))
	}
	if now.Refused != "" {
		out = append(out, noteworthy(name, "mend the file and send the node SIGHUP", "the node goes on with the uplinks it had: %s", printable(now.Refused)))
	}
	for _, u := range now.Uplinks {
		if why := strings.TrimSpace(u.Reason + " " + u.Note); u.State == "failed" || why != "" {
			out = append(out, noteworthy(name, "it is tried again every two seconds", "%s by %s: %s: %s", printable(u.Network), printable(u.How), u.State, printable(why)))
		}
	}
	return out
}
