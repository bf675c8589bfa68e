package process

import (
	"strconv"

	"starling/vmpool"
)

// CPUFile returns a file of the cpu controller of a sandbox.
func CPUFile(s vmpool.Sandbox, name string) string {
	b := s.(*sandbox)
	return b.driver.cfg.CgroupRoot + "/cpu/" + b.driver.parent() + "/" + strconv.FormatUint(b.id, 10) + "/" + name
}

// Behind names the group of the cpu controller in which sandboxes are cloned that nobody waits for.
func Behind(s vmpool.Sandbox) string { return s.(*sandbox).driver.parent() + "-behind" }
