package splice

import (
	"errors"
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/transport"
)

// An End is why a flow is over, as metrics and logs have it.
type End string

// The ends. All but Done and Moved reset the connection.
const (
	Done       End = "done"       // both directions have said their last
	Moved      End = "moved"      // another process of this machine has the connection
	Idle       End = "idle"       // nothing moved for too long
	Connection End = "connection" // the connection failed: its other end reset it
	GivenUp    End = "given up"   // the node at the stream's other end gave the flow up, as it does when its own connection was reset
	Silent     End = "silent"     // that node said nothing for too long
	Lost       End = "lost"       // the stream failed otherwise: that node has ended
	Stopped    End = "stopped"    // the flow's owner here ended it
	Crowded    End = "crowded"    // it never began: its sandbox has as many as it may
	Denied     End = "denied"     // it never began: nobody may go where it was for
)

var ends = []End{Done, Moved, Idle, Connection, GivenUp, Silent, Lost, Stopped, Crowded, Denied}

// Counters makes a counter of each end.
func Counters(set *metrics.Set, name string) map[End]*metrics.Counter {
	m := map[End]*metrics.Counter{}
	for _, e := range ends {
		m[e] = set.NewCounter(fmt.Sprintf("%s{why=%q}", name, string(e)))
	}
	return m
}

// endOf says what an error of a connection or a stream means. Those of streams are our own.
func endOf(err error) End {
	var own *starling.Error
	switch {
	case errors.Is(err, transport.ErrSilent):
		return Silent
	case errors.Is(err, transport.ErrGivenUp):
		return GivenUp
	case errors.Is(err, transport.ErrCanceled):
		return Stopped
	case errors.As(err, &own):
		return Lost
	}
	return Connection
}
