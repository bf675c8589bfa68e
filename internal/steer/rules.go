package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Numbers of the kernel's that x/sys does not have.
const (
	tproxyFamily  = 1
	tproxyAddress = 2
	tproxyPort    = 3

	priorityMangle = -150 // before whatever else could look at a packet that arrives
	destination    = 16   // where an IPv4 header has it
)

// Registers of a rule: what is compared, and where TPROXY finds the sockets' address and port.
const (
	regValue   = unix.NFT_REG_1
	regAddress = unix.NFT_REG_2
	regPort    = unix.NFT_REG_3
)

// apart is where the two sockets of the rules are. Nobody has this address (RFC 7600) and nobody may be dialled there, so that the code
// inside meets the sockets by no way but the rules, which lead there from everywhere.
var apart = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 0, 8}), ownPort)

// Rules hand over what is sent out in one namespace by nftables' TPROXY. They are for kernels that have no BPF program in the lookup of
// sockets, and do the same: what arrives at lo for any address but a loopback's, and for the resolver, is given to the two sockets of
// [ListenApart]. Other connections of the namespace are left alone, as is everything while the sockets take nothing.
type Rules struct{}

// AddRules adds them to the caller's namespace. They steer nothing yet.
func AddRules() error {
	tables, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err = tables.ask(batch(ruleset()...)); err != nil {
		err = fmt.Errorf("add rules with TPROXY to nftables: %w", err)
	}
	return errors.Join(err, tables.close())
}

// Steer has the two sockets take what the rules have for them: until then they are not transparent, and TPROXY passes over such.
func (Rules) Steer(tcp, udp syscall.Conn) error {
	for _, c := range []syscall.Conn{tcp, udp} {
		rc, err := c.SyscallConn()
		if err == nil {
			err = with(option{unix.SOL_IP, unix.IP_TRANSPARENT})("", "", rc)
		}
		if err != nil {
			return fmt.Errorf("steer to socket: %w", err)
		}
	}
	return nil
}

// Close leaves the rules to end with their namespace. Without the sockets they pass everything on; to take them out would be to wait until
// no core of the machine can be at work on them, some 12 ms.
func (Rules) Close() error { return nil }

// Names in nftables, which the operator sees who looks into a sandbox's namespace.
const (
	tableName = "starling"
	chainName = "capture"
)

// ruleset is, and the same for UDP,
//
//	table ip starling {
//		chain capture {
//			type filter hook prerouting priority mangle; policy accept;
//			meta l4proto tcp ip daddr != 127.0.0.0/8 tproxy to 192.0.0.8:1
//			ip daddr 127.0.0.1 tcp dport 53 tproxy to 192.0.0.8:1
//		}
//	}
func ruleset() [][]byte {
	list := [][]byte{
		nft(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, text(unix.NFTA_TABLE_NAME, tableName)),
		nft(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, text(unix.NFTA_CHAIN_TABLE, tableName), text(unix.NFTA_CHAIN_NAME, chainName),
			attribute(unix.NFTA_CHAIN_HOOK, word(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING), word(unix.NFTA_HOOK_PRIORITY, priorityMangle)),
			text(unix.NFTA_CHAIN_TYPE, "filter")),
	}
	resolver, port := Resolver.Addr().AsSlice(), binary.BigEndian.AppendUint16(nil, Resolver.Port())
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		list = append(list,
			rule(protocol,
				payload(unix.NFT_PAYLOAD_NETWORK_HEADER, destination, 1), compare(unix.NFT_CMP_NEQ, []byte{loopbackNet})),
			rule(protocol,
				payload(unix.NFT_PAYLOAD_NETWORK_HEADER, destination, 4), compare(unix.NFT_CMP_EQ, resolver),
				payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), compare(unix.NFT_CMP_EQ, port)))
	}
	return list
}

// rule gives what is of a protocol and meets the conditions to the sockets apart.
func rule(protocol byte, conditions ...[]byte) []byte {
	steps := slices.Concat(
		expression("meta", word(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO), word(unix.NFTA_META_DREG, regValue)),
		compare(unix.NFT_CMP_EQ, []byte{protocol}),
		slices.Concat(conditions...),
		set(regAddress, apart.Addr().AsSlice()),
		set(regPort, binary.BigEndian.AppendUint16(nil, apart.Port())),
		expression("tproxy", word(tproxyFamily, unix.NFPROTO_IPV4), word(tproxyAddress, regAddress), word(tproxyPort, regPort)),
	)
	return nft(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
		text(unix.NFTA_RULE_TABLE, tableName), text(unix.NFTA_RULE_CHAIN, chainName), attribute(unix.NFTA_RULE_EXPRESSIONS, steps))
}

func payload(base, offset, size int32) []byte {
	return expression("payload", word(unix.NFTA_PAYLOAD_DREG, regValue), word(unix.NFTA_PAYLOAD_BASE, base),
		word(unix.NFTA_PAYLOAD_OFFSET, offset), word(unix.NFTA_PAYLOAD_LEN, size))
}

func compare(how int32, with []byte) []byte {
	return expression("cmp", word(unix.NFTA_CMP_SREG, regValue), word(unix.NFTA_CMP_OP, how), attribute(unix.NFTA_CMP_DATA, attribute(unix.NFTA_DATA_VALUE, with)))
}

func set(register int32, value []byte) []byte {
	return expression("immediate", word(unix.NFTA_IMMEDIATE_DREG, register), attribute(unix.NFTA_IMMEDIATE_DATA, attribute(unix.NFTA_DATA_VALUE, value)))
}

// expression is one step of a rule.
func expression(name string, of ...[]byte) []byte {
	return attribute(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), attribute(unix.NFTA_EXPR_DATA, of...))
}

func text(kind uint16, s string) []byte { return attribute(kind, []byte(s), []byte{0}) }

func word(kind uint16, value int32) []byte {
	return attribute(kind, binary.BigEndian.AppendUint32(nil, uint32(value)))
}

// nft is one message to nftables about IPv4.
func nft(kind, flags uint16, attributes ...[]byte) []byte {
	about := []byte{unix.NFPROTO_IPV4, 0, 0, 0} // struct nfgenmsg
	return message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_ACK|flags, append([][]byte{about}, attributes...)...)
}

// batch makes of messages one change, which is done or refused whole.
func batch(messages ...[]byte) []byte {
	about := []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES} // struct nfgenmsg
	begin, end := message(unix.NFNL_MSG_BATCH_BEGIN, 0, about), message(unix.NFNL_MSG_BATCH_END, 0, about)
	return slices.Concat(begin, slices.Concat(messages...), end)
}
