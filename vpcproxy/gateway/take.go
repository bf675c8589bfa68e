package gateway

import (
	"context"
	"log/slog"
	"net"
	"os"
	"time"

	"starling"
	"starling/internal/packet"
	"starling/transport"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/handover"
	"starling/vpcproxy/header"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/resume"
)

// serveResume goes on with a flow that another gateway of this machine has carried so far. Until that one has handed the flow over nothing
// has happened to it, and the answer is NoUplink; a flow that fails after that is reset.
func (g *Gateway) serveResume(s transport.Stream, h header.Header) {
	f := &attempt{gateway: g, Header: h, host: s.Peer().Node, token: h.Token}
	c, account, err := f.take(h)
	if err != nil {
		f.seldom("resume: " + err.Error())
		g.refuse(s, header.NoUplink)
		return
	}
	defer f.end()
	g.m.resumed.Inc()
	ctx, cancel := context.WithDeadline(g.group.Context(), f.began.Add(g.cfg.FlowTime))
	defer cancel()
	defer context.AfterFunc(f.plug.ctx, cancel)()
	defer context.AfterFunc(ctx, s.Cancel)()
	if _, err := s.Write(header.AppendSent([]byte{byte(header.Open)}, account.Sent())); err != nil {
		_ = c.SetLinger(0) // fails when it has been reset already
		c.Close()
		return
	}
	f.note(slog.LevelDebug, "flow goes on here", "")
	f.carryTCP(ctx, s, c, account)
}

// take gets the flow from the gateway that has it, in which its socket was made in a namespace that this one is plugged into, too.
func (f *attempt) take(h header.Header) (*net.TCPConn, resume.Account, error) {
	const op = "take flow"
	none := resume.Account{}
	own := f.gateway.cfg.Handover
	if own.Dir == "" || own.Self == h.From || !f.gateway.Ready() {
		return nil, none, starling.Errorf(starling.Unavailable, op, "this gateway takes no flows of others")
	}
	conn, err := handover.Dial(own.Dir, h.From)
	if err != nil {
		return nil, none, err
	}
	defer conn.Close()
	if err := conn.Say(resume.Question{Token: h.Token, Host: f.host, Sent: h.Sent}); err != nil {
		return nil, none, err
	}
	var o resume.Offer
	if _, err := conn.Hear(&o); err != nil {
		return nil, none, err
	}
	if !o.Here {
		return nil, none, starling.Errorf(starling.NotFound, op, "%s does not have it", h.From)
	}
	if f.gateway.plug(o.Network) == nil {
		return nil, none, starling.Errorf(starling.NotFound, op, "this gateway is not plugged into %s", o.Network)
	}
	if err := conn.Say(resume.Wanted{Wanted: true}); err != nil {
		return nil, none, err
	}
	return f.receive(conn, h.Sent)
}

// receive takes what the other gateway hands over and says that it has it.
func (f *attempt) receive(conn *handover.Conn, sent uint64) (*net.TCPConn, resume.Account, error) {
	none := resume.Account{}
	var r resume.Flow
	fds, err := conn.Hear(&r)
	if err != nil {
		return nil, none, err
	}
	if len(fds) != 1 {
		packet.CloseAll(fds)
		return nil, none, starling.Errorf(starling.Invalid, "take flow", "%d sockets", len(fds))
	}
	c, err := socket(fds[0])
	if err != nil {
		return nil, none, err
	}
	account, err := f.fill(conn, r, c, sent)
	if err != nil {
		f.end()
		c.Close() // the other gateway, which hears no more, resets it
		return nil, none, err
	}
	return c, account, nil
}

// fill makes the attempt the flow that r tells of, and says that all of it has come.
func (f *attempt) fill(conn *handover.Conn, r resume.Flow, c *net.TCPConn, sent uint64) (a resume.Account, err error) {
	if err := f.adopt(r, c, sent); err != nil {
		return a, err
	}
	unsent, err := conn.Receive(r.Unsent)
	if err != nil {
		return a, err
	}
	unwritten, err := conn.Receive(r.Unwritten)
	if err != nil {
		return a, err
	}
	return resume.Restore(r.Sent, r.Taken, unsent, unwritten), conn.Say(resume.Wanted{Wanted: true})
}

// socket makes a connection of a descriptor.
func socket(fd int) (*net.TCPConn, error) {
	file := os.NewFile(uintptr(fd), "flow")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, starling.Errorf(starling.Invalid, "take flow", "it is no TCP connection")
	}
	return tcp, nil
}

// adopt makes the attempt what the other gateway says the flow is, and takes its place in the table.
func (f *attempt) adopt(r resume.Flow, c *net.TCPConn, sent uint64) error {
	const op = "take flow"
	if err := r.Check(); err != nil {
		return err
	}
	if r.Taken != sent {
		return starling.Errorf(starling.Invalid, op, "%d bytes came of %d that the host has sent", r.Taken, sent)
	}
	f.grant = grant.Grant{Attachment: starling.Attachment{Instance: r.Instance, Function: r.Function, Version: r.Version, Network: r.Network}, Host: f.host}
	f.Kind, f.To, f.began = header.TCP, r.To, time.UnixMilli(r.Began)
	limits, err := f.plugIn(f.gateway.group.Context())
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if !netns.Holds(f.plug.ns, raw) {
		return starling.Errorf(starling.Denied, op, "its socket is not of the namespace of %s", f.grant.Ref())
	}
	f.adoptCount(limits)
	return nil
}

// adoptCount takes the flow's place in the table, which it has already, at the other gateway.
func (f *attempt) adoptCount(limits flowtable.Limits) {
	now := f.gateway.cfg.Now()
	f.gateway.mu.Lock()
	f.gateway.table.Adopt(now, f.key(), limits)
	f.gateway.mu.Unlock()
	f.counted = true
}
