//go:build !crashpoints

package dragonboat

import "github.com/lni/dragonboat/v4/config"

// crashing returns disk.
func crashing(disk config.IFS) config.IFS { return disk }
