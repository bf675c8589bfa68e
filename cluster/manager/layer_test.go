package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
)

// While a node of the release before is at work, layers are neither published nor used: it would run a function without them.
func TestLayersWaitForTheLastOlderNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 3)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2) })
		n := w.nodes[1]
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		level := func(l cluster.Level) {
			g := n.manager.reign.Load()
			g.mu.Lock()
			defer g.mu.Unlock()
			g.ledger.Hello(2, cluster.Hello{Level: l}, false, n.manager.cfg.Now())
		}
		layer := cluster.PublishLayer{Layer: starling.Layer{Account: "acme", Name: "deps", Code: put(1).Code, CodeSize: 1}}
		level(cluster.LevelIsolation)
		layered := put(1)
		layered.Config.Layers = []starling.LayerRef{{Name: "deps", Version: 1}}
		for what, cmd := range map[string]cluster.Command{"published": layer, "used": layered, "deleted": cluster.DeleteLayer{Account: "acme", Layer: layered.Config.Layers[0]}} {
			if _, err := n.view.Propose(t.Context(), cmd); starling.ReasonOf(err) != "OlderRelease" {
				t.Errorf("a layer was %s: %v", what, err)
			}
		}
		n.mustPropose(put(1))
		level(cluster.LevelNow)
		n.mustPropose(layer)
		layered.Now++
		n.mustPropose(layered)
	})
}
