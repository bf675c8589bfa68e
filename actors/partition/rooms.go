package partition

import (
	"starling"
	"starling/actors/wire"
)

// noteRoom keeps the newest report of each host, so that a partition that begins here need not wait for the next one, half a
// second at most, before it can start an instance.
func (k *Keeper) noteRoom(from starling.NodeID, msgs []wire.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range msgs {
		if r, ok := m.(*wire.HostReport); ok {
			k.rooms[from] = r
		}
	}
}

func (k *Keeper) forgetRoom(n starling.NodeID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.rooms, n)
}

// tellRooms gives an actor what the hosts reported last.
func (k *Keeper) tellRooms(a *actor, hosts []starling.NodeID) {
	var rooms []*batch
	k.mu.Lock()
	for _, n := range hosts {
		if r := k.rooms[n]; r != nil {
			rooms = append(rooms, &batch{n, []wire.Message{r}})
		}
	}
	k.mu.Unlock()
	for _, b := range rooms {
		a.ref.Tell(b, 1)
	}
}
