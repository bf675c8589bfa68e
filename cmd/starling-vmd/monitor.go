package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"starling/vmpool/kata/shim"
)

// monitorTime bounds one conversation with QEMU.
const monitorTime = 10 * time.Second

// A monitor speaks QMP with one QEMU, beside Kata's own.
type monitor struct {
	conn *net.UnixConn
	in   *json.Decoder
	free func() bool // stops watching the context
}

// openMonitor connects to the monitor of the VM in dir. The conversation ends with ctx, and after monitorTime.
func openMonitor(ctx context.Context, dir string) (*monitor, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, shim.MonitorSocket)})
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, in: json.NewDecoder(bufio.NewReader(conn))}
	m.free = context.AfterFunc(ctx, func() { conn.Close() })
	err = conn.SetDeadline(time.Now().Add(monitorTime))
	if err == nil {
		err = m.in.Decode(&map[string]any{}) // the greeting
	}
	if err == nil {
		err = m.do("qmp_capabilities", nil, nil)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) close() {
	m.free()
	m.conn.Close()
}

// do carries out one command and decodes what it returns into answer, unless that is nil.
func (m *monitor) do(command string, arguments, answer any) error {
	return m.doWith(command, arguments, nil, answer)
}

// doWith is do with the descriptors of rights, made by syscall.UnixRights.
func (m *monitor) doWith(command string, arguments any, rights []byte, answer any) error {
	q := map[string]any{"execute": command}
	if arguments != nil {
		q["arguments"] = arguments
	}
	text, err := json.Marshal(q)
	if err != nil {
		return err
	}
	if _, _, err := m.conn.WriteMsgUnix(text, rights, nil); err != nil {
		return err
	}
	for {
		var a struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		switch err := m.in.Decode(&a); {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case a.Error != nil:
			return fmt.Errorf("%s: %s", command, a.Error.Desc)
		case a.Return != nil && answer != nil:
			return json.Unmarshal(a.Return, answer)
		case a.Return != nil:
			return nil
		}
	}
}

// runLoaded waits until a clone's state is loaded and lets it run. One that runs already may be a guest that was booted, which others tell,
// or a clone that Kata, which looks every 100 ms, let run before we looked: on a busy machine it does.
func (m *monitor) runLoaded(ctx context.Context) error {
	_, err := soon(ctx, func() (none struct{}, err error) {
		var now struct{ Status string }
		if err := m.do("query-status", nil, &now); err != nil {
			return none, err
		}
		if now.Status == "inmigrate" {
			return none, errLoading
		}
		return none, nil
	})
	if err != nil {
		return err
	}
	return m.do("cont", nil, nil)
}

// putCode puts an image into the code slot of a VM: a new file under the disk that the guest has. Nobody writes it, so nobody locks it.
func putCode(ctx context.Context, vm string, image *os.File) error {
	m, err := openMonitor(ctx, vm)
	if err != nil {
		return err
	}
	defer m.close()
	type args map[string]any
	file := args{"driver": "file", "node-name": "image", "filename": "/dev/fdset/1", "read-only": true, "locking": "off"}
	disk := args{"driver": "raw", "node-name": shim.CodeNode, "read-only": true, "file": "image"}
	return errors.Join(
		m.doWith("add-fd", args{"fdset-id": 1}, syscall.UnixRights(int(image.Fd())), nil), // QEMU may open no file of the cache, where others' code lies
		m.do("blockdev-add", file, nil),
		m.do("blockdev-reopen", args{"options": []args{disk}}, nil),
	)
}
