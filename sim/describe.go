package sim

import (
	"fmt"

	"starling/actors/wire"
)

// describe writes a message as people read it in a trace.
func describe(to wire.Address, m wire.Message) string {
	switch m := m.(type) {
	case *wire.Acquire:
		return fmt.Sprintf("%v/%d acquire %x v%d", m.Partition, m.Epoch, m.Call, m.Version)
	case *wire.Cancel:
		return fmt.Sprintf("%v cancel %x", m.Partition, m.Call)
	case *wire.Release:
		return fmt.Sprintf("%v/%d release %x", m.Partition, m.Epoch, m.Leases)
	case *wire.Renew:
		return fmt.Sprintf("%v/%d renew %x", m.Partition, m.Epoch, m.Leases)
	case *wire.Grant:
		return fmt.Sprintf("%v/%d grant %x to %x: %v on %v", m.Lease.Partition, m.Lease.Epoch, m.Lease.ID, m.Call, m.Lease.Instance, m.Lease.Host)
	case *wire.Reject:
		return fmt.Sprintf("%v reject %x: %s", m.Partition, m.Call, m.Reason)
	case *wire.Recall:
		return fmt.Sprintf("%v/%d recall %x", m.Partition, m.Epoch, m.Leases)
	case *wire.Renewed:
		return fmt.Sprintf("%v/%d renewed %x", m.Partition, m.Epoch, m.Leases)
	case *wire.Start:
		return fmt.Sprintf("%v/%d start %v v%d", m.Partition, m.Epoch, m.Instance, m.Version)
	case *wire.Stop:
		return fmt.Sprintf("%v/%d stop %v", m.Partition, m.Epoch, m.Instance)
	case *wire.Fence:
		return fmt.Sprintf("%v/%d fence %v", m.Partition, m.Epoch, m.Range)
	case *wire.Started:
		return fmt.Sprintf("%v started %v", m.Partition, m.Instance)
	case *wire.StartFailed:
		return fmt.Sprintf("%v start failed %v: %s", m.Partition, m.Instance, m.Reason)
	case *wire.Exited:
		return fmt.Sprintf("%v exited %v: %s", m.Partition, m.Instance, m.Reason)
	case *wire.Fenced:
		return fmt.Sprintf("%v/%d fenced, %d instances", m.Partition, m.Epoch, len(m.Instances))
	case *wire.Borrow:
		return fmt.Sprintf("%v/%d borrow of %s: holds %d, needs %d, wants %d, saw %d", m.Partition, m.Epoch, m.Account, m.Held, m.Need, m.Want, m.Seen)
	case *wire.Lend:
		return fmt.Sprintf("%v lend of %s: %d of %d, number %d", m.Partition, m.Account, m.Permits, m.Limit, m.Number)
	case *wire.Audit:
		return fmt.Sprintf("%v audit of %s, term %d.%d", to.Partition, m.Account, m.Term.Epoch, m.Term.Life)
	case *wire.Relay:
		return fmt.Sprintf("%v relay from %v: %s", to.Partition, m.From, describe(to, m.Body))
	case *wire.Census:
		return fmt.Sprintf("%v/%d census of %v, about %v", m.Partition, m.Epoch, m.Range, m.Hosts)
	case *wire.AtWork:
		return fmt.Sprintf("%v/%d at work: %d leases", m.Partition, m.Epoch, len(m.Leases))
	case *wire.HostReport:
		return fmt.Sprintf("report: %d MiB free, %d instances, %d starting", m.FreeMiB, m.Instances, m.Starting)
	}
	return fmt.Sprintf("message of kind %d to %v", m.Kind(), to.Node)
}
