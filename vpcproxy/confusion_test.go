package vpcproxy

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
)

// What a connection carries never says whose it is or where it goes (row D7 of the list of attacks): every byte that would tell a
// proxy another destination, or a gateway another account, arrives where the connection went, as it was sent.
func TestNothingInAConnectionSteersIt(t *testing.T) { byEachMeans(t, 1, steersNothing) }

func steersNothing(t *testing.T, w *world) {
	zeta := w.attachment("zeta", "db")
	theirs := grant.Sign(ed25519.NewKeyFromSeed(w.signer.Seed), grant.Grant{Attachment: zeta, Host: 1, First: time.Now().Unix(), Until: time.Now().Add(time.Hour).Unix()})
	s := w.connected("acme")
	for what, sent := range map[string]string{
		"CONNECT":              "CONNECT 10.7.0.66:8080 HTTP/1.1\r\nHost: 10.7.0.66:8080\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"absolute form":        "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: db.internal\r\n\r\n",
		"another Host":         "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-For: 10.7.0.66\r\nForwarded: for=10.7.0.66\r\n\r\n",
		"PROXY protocol":       "PROXY TCP4 10.7.0.66 10.7.0.99 1 8080\r\nGET / HTTP/1.0\r\n\r\n",
		"PROXY protocol 2":     "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x07\x00\x42\x0a\x07\x00\x63\x00\x01\x1f\x90",
		"SOCKS 5":              "\x05\x01\x00\x05\x01\x00\x01\x0a\x07\x00\x42\x1f\x90",
		"another SNI":          "\x16\x03\x01\x00\x2e\x01\x00\x00\x2a\x03\x03 10.7.0.66 metadata.google.internal",
		"a header of a flow":   string(header.Append(nil, header.Header{Kind: header.TCP, Grant: theirs, To: netip.MustParseAddrPort("10.7.0.66:8080")})),
		"a gateway's own byte": string([]byte{byte(header.Denied), byte(header.Open)}),
	} {
		c, err := s.dial("tcp", serverAddr+":8080")
		must(t, err)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.WriteString(c, sent)
		must(t, err)
		must(t, c.(*net.TCPConn).CloseWrite())
		got, err := io.ReadAll(c)
		c.Close()
		if err != nil || !bytes.Equal(got, []byte("acme\n"+sent)) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

// A host shows each grant for what it is: one that another host got, or that it changed, is refused.
func TestGrantOfAnotherHostIsRefused(t *testing.T) {
	w := newWorld(t, 1, nil)
	key := ed25519.NewKeyFromSeed(w.signer.Seed)
	until := time.Now().Add(time.Hour).Unix()
	show := func(raw []byte) header.Answer {
		t.Helper()
		tunnel, err := w.host.Dial(t.Context(), w.gateways[0].node.Addr)
		must(t, err)
		defer tunnel.Close()
		st, err := tunnel.Open(t.Context(), transport.ChannelTunnel)
		must(t, err)
		_, err = st.Write(header.Append(nil, header.Header{Kind: header.Test, Grant: raw, To: netip.MustParseAddrPort(serverAddr + ":8080")}))
		must(t, err)
		var b [1]byte
		_, err = io.ReadFull(st, b[:])
		must(t, err)
		return header.Answer(b[0])
	}
	own := grant.Sign(key, grant.Grant{Attachment: w.attachment("acme", "db"), Host: 1, First: time.Now().Unix(), Until: until})
	if a := show(own); a != header.Open {
		t.Fatalf("its own grant: %s", a)
	}
	if a := show(grant.Sign(key, grant.Grant{Attachment: w.attachment("acme", "db"), Host: starling.NodeID(2), First: time.Now().Unix(), Until: until})); a != header.BadGrant {
		t.Errorf("another host's grant: %s", a)
	}
	if a := show(bytes.Replace(own, []byte("acme"), []byte("zeta"), 1)); a != header.BadGrant {
		t.Errorf("a grant with another account written into it: %s", a)
	}
}
