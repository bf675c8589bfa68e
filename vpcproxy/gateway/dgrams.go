package gateway

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/policy"
)

// exchange carries datagrams until nothing moved for the idle time, or either end is gone.
func (f *attempt) exchange(s transport.Stream, c net.Conn) {
	idle := f.gateway.cfg.DgramTime
	ended := make(chan struct{})
	go func() { // ends with the socket
		defer close(ended)
		defer s.Cancel()
		buf := make([]byte, header.DatagramMax)
		for {
			if c.SetReadDeadline(time.Now().Add(idle)) != nil {
				return
			}
			n, err := c.Read(buf)
			if err != nil && n == 0 {
				return // also when nobody listens there: the host's flow ends
			}
			if _, err := s.Write(header.AppendDatagram(nil, buf[:n])); err != nil {
				return
			}
			f.plug.flows.down.Add(n)
		}
	}()
	buf := make([]byte, header.DatagramMax)
	for {
		d, err := header.ReadDatagram(s, buf)
		if err != nil {
			break
		}
		_ = c.SetReadDeadline(time.Now().Add(idle)) // fails on a closed socket, to which the writing below fails, too
		if _, err := c.Write(d); err != nil && !transient(err) {
			break
		}
		f.plug.flows.up.Add(len(d))
	}
	c.Close()
	<-ended
}

// The parts of a message of RFC 1035 that are of interest.
const (
	dnsHead     = 12
	dnsPort     = 53
	dnsResponse = 0x80 // in the third byte
	dnsCut      = 0x02 // in the third byte
	dnsServFail = 2
	dnsRefused  = 5
)

// nameTime is how long one server has to answer.
const nameTime = 2 * time.Second

// serveName answers one question from the network's namespace.
func (f *attempt) serveName(s transport.Stream) {
	f.gateway.m.begun(f.Kind)
	if s.SetReadDeadline(time.Now().Add(headTime)) != nil {
		return
	}
	if _, err := s.Write([]byte{byte(header.Open)}); err != nil {
		return
	}
	question, err := header.ReadDatagram(s, make([]byte, header.DatagramMax))
	if err != nil || len(question) < dnsHead {
		return
	}
	f.plug.flows.up.Add(len(question))
	answer := f.resolve(question)
	f.plug.flows.down.Add(len(answer))
	if _, err := s.Write(header.AppendDatagram(nil, answer)); err == nil {
		_ = s.CloseWrite()
	}
}

// servers returns whom the network asks for names.
func (f *attempt) servers() (out []netip.AddrPort) {
	if f.network == nil || len(f.network.DNS) == 0 {
		return f.plug.nameServers()
	}
	for _, text := range f.network.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		to := netip.AddrPortFrom(a, dnsPort)
		if v := f.rules.CheckServer(to); v != policy.Permitted {
			f.note(slog.LevelWarn, "name server denied", to.String()+": "+string(v))
			continue
		}
		out = append(out, to)
	}
	return out
}

// resolve asks one server after the other.
func (f *attempt) resolve(question []byte) []byte {
	servers := f.servers()
	for _, server := range servers {
		answer, err := f.query("udp", server, question)
		if err == nil && answer[2]&dnsCut != 0 {
			if whole, err := f.query("tcp", server, question); err == nil {
				answer = whole
			}
		}
		if err == nil {
			return answer
		}
	}
	code := byte(dnsServFail)
	if len(servers) == 0 {
		code = dnsRefused
	}
	failed := append([]byte(nil), question...)
	failed[2] |= dnsResponse
	failed[3] = failed[3]&0xf0 | code
	return failed
}

// query asks one server. Answers to other questions are not taken.
func (f *attempt) query(network string, server netip.AddrPort, question []byte) ([]byte, error) {
	c, err := netns.Dial(f.plug.ns, network, f.from(server.Addr()), server, nameTime)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(nameTime)); err != nil {
		return nil, err
	}
	buf := make([]byte, header.DatagramMax)
	if network == "tcp" {
		_, err = c.Write(header.AppendDatagram(nil, question)) // names over TCP have the same two bytes of length
	} else {
		_, err = c.Write(question)
	}
	for err == nil {
		var answer []byte
		if network == "tcp" {
			answer, err = header.ReadDatagram(c, buf)
		} else {
			var n int
			n, err = c.Read(buf)
			answer = buf[:n]
		}
		if err == nil && len(answer) >= dnsHead && answer[2]&dnsResponse != 0 && binary.BigEndian.Uint16(answer) == binary.BigEndian.Uint16(question) {
			return answer, nil
		}
	}
	return nil, err
}
