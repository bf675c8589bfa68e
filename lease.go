package starling

import "time"

// A Lease is a right, bounded in time, of one frontend to use Slots slots of one instance. The frontend
// shows it to the host with every call; the host obeys the highest epoch it has seen for the partition.
type Lease struct {
	ID        LeaseID
	Partition PartitionID
	Epoch     Epoch
	Version   VersionID
	Instance  InstanceID
	Host      NodeID
	Slots     uint16
	TTL       time.Duration // from the moment it is received, without renewal
	Phases    Phases        // what the call that it answers waited for
	Key       Key64         // of the instance: whose range holds it keeps the lease, whoever granted it; 0 from an older release
}
