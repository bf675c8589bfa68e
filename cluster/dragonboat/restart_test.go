package dragonboat

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
	"starling/transport/inmem"
)

var longLog = flag.Int("longlog", 4_000, "commands in the log of the test that restarts a killed replica")

// fillCommands returns the commands that make a cluster of a thousand functions, and those that put them again and again.
func fillCommands(n int) []cluster.Command {
	out := []cluster.Command{cluster.InitCluster{Name: "test", Partitions: 64}, cluster.CreateAccount{Account: starling.Account{ID: "acme"}}}
	for i := len(out); i < n; i++ {
		f := starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("function-", i%1000))}
		out = append(out, cluster.PutFunction{Function: f, Config: starling.Config{Runtime: starling.Python311, Handler: "main.handler", Env: map[string]string{"STEP": fmt.Sprint(i)}},
			Code: starling.CodeHash(fmt.Sprintf("%064x", i)), CodeSize: 1000, Now: int64(i)})
	}
	return out
}

// runFill is one process of TestRestartWithLongLog: "dir commands every". It fills the log, prints the hash of the state
// and waits to be killed.
func runFill(spec string) {
	f := strings.Fields(spec)
	n, _ := strconv.Atoi(f[1])
	every, _ := strconv.ParseUint(f[2], 10, 64)
	die := func(err error) {
		fmt.Println("E", err)
		os.Exit(1)
	}
	end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
	end.Listen()
	cfg, machine := lone(f[0], end, die), cluster.NewMachine()
	cfg.SnapshotEvery, cfg.Machine = every, machine
	h, err := Open(cfg)
	if err != nil {
		die(err)
	}
	put := func(c cluster.Command) {
		raw, err := cluster.EncodeCommand(c)
		if err != nil {
			die(err)
		}
		reply, _, err := h.Propose(context.Background(), raw)
		if err == nil {
			_, err = cluster.DecodeReply(reply)
		}
		if err != nil {
			die(err)
		}
	}
	commands := fillCommands(n)
	put(commands[0])
	put(commands[1])
	var next atomic.Int64
	next.Store(2)
	var group sync.WaitGroup
	for range 256 {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				put(commands[i])
			}
		})
	}
	group.Wait()
	hash, index := machine.Hash()
	fmt.Printf("FULL %x %d\n", hash, index)
	select {}
}

// TestRestartWithLongLog measures how long a replica that was killed takes until it answers again, with a log of many
// commands of the catalog: with the usual snapshots, and with none, which is the worst a log can be.
func TestRestartWithLongLog(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a log in a process of its own")
	}
	for _, every := range []uint64{snapshotEvery, 1 << 30} {
		dir := t.TempDir()
		cmd, out := child(t, fmt.Sprintf("fill %s %d %d", dir, *longLog, every))
		full := ""
		for full == "" && out.Scan() {
			if text := out.Text(); strings.HasPrefix(text, "FULL") || strings.HasPrefix(text, "E ") {
				full = text
			}
		}
		cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		end := inmem.New(inmem.Config{}).Endpoint(transport.Peer{Node: 1})
		end.Listen()
		began := time.Now()
		cfg, machine := lone(dir, end, nil), cluster.NewMachine()
		cfg.SnapshotEvery, cfg.Machine = every, machine
		h, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		opened := time.Since(began)
		if _, err := h.Read(within(t), cluster.Query{What: cluster.QueryClaim}); err != nil {
			t.Error(err)
		}
		answered := time.Since(began)
		hash, index := machine.Hash()
		if got := fmt.Sprintf("FULL %x %d", hash, index); got != full {
			t.Errorf("it came back as %q and was killed as %q", got, full)
		}
		t.Logf("%d commands, a snapshot every %d: opened after %v, answered after %v", *longLog, every, opened.Round(time.Millisecond), answered.Round(time.Millisecond))
		h.Close()
		end.Close()
	}
}
