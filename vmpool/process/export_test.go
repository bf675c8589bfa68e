package process

import (
	"strconv"

	"starling/vmpool"
)

// ProcsFile returns the file that lists the processes of a sandbox.
func ProcsFile(s vmpool.Sandbox) string {
	b := s.(*sandbox)
	return b.driver.cfg.CgroupRoot + "/pids/" + b.driver.parent() + "/" + strconv.FormatUint(b.id, 10) + "/cgroup.procs"
}
