package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	types "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols"
	"github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/client"
	pb "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/pkg/agent/protocols/grpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"starling/vmpool/kata/agent"
	"starling/vmpool/kata/link"
)

// dialSeconds bounds the wait for QEMU's socket.
const dialSeconds = 10

// An agentConn is Kata's client of the agent in one guest.
type agentConn struct{ *client.AgentClient }

func dialAgent(socket string) (*agentConn, error) {
	if err := awaitSocket(socket); err != nil {
		return nil, err
	}
	c, err := client.NewAgentClient(context.Background(), "remote://"+socket, dialSeconds)
	if err != nil {
		return nil, fmt.Errorf("reach the agent: %w", err)
	}
	return &agentConn{c}, nil
}

// errLoading says that a clone's state is not loaded yet.
var errLoading = errors.New("the state is not loaded yet")

// soon asks again and again for what comes within milliseconds, while what it is told means "not yet" and ctx lasts.
func soon[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for {
		got, err := ask()
		notYet := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, errLoading)
		if !notYet || ctx.Err() != nil {
			return got, err
		}
		time.Sleep(time.Millisecond)
	}
}

// awaitSocket waits until QEMU made one of its sockets, which it does before anything else.
func awaitSocket(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialSeconds*time.Second)
	defer cancel()
	_, err := soon(ctx, func() (os.FileInfo, error) { return os.Stat(path) })
	return err
}

func (a *agentConn) version(ctx context.Context) (string, error) {
	v, err := a.HealthClient.Version(ctx, &pb.CheckRequest{})
	if err != nil {
		return "", fmt.Errorf("ask the agent: %w", err)
	}
	return v.AgentVersion, nil
}

// seedBytes is how much randomness a clone gets, as Kata gives.
const seedBytes = 512

// renew gives a clone what it must not share with its template: randomness first, because the rest is made from it.
func (a *agentConn) renew(ctx context.Context, name string) error {
	seed := make([]byte, seedBytes)
	rand.Read(seed)
	if _, err := a.AgentServiceClient.ReseedRandomDev(ctx, &pb.ReseedRandomDevRequest{Data: seed}); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	if err := a.setTime(ctx); err != nil {
		return err
	}
	if _, err := a.AgentServiceClient.CreateSandbox(ctx, &pb.CreateSandboxRequest{Hostname: name}); err != nil {
		return fmt.Errorf("name the guest: %w", err)
	}
	return nil
}

// The guest's clock is late by what the message took to it: at most the time until the answer. An answer within timeSoon is good
// enough, and a guest that stood in a queue is told again.
const (
	timeSoon  = 20 * time.Millisecond
	timeTries = 8
)

func (a *agentConn) setTime(ctx context.Context) error {
	for range timeTries {
		now := time.Now()
		_, err := a.AgentServiceClient.SetGuestDateTime(ctx, &pb.SetGuestDateTimeRequest{Sec: now.Unix(), Usec: int64(now.Nanosecond() / 1000)})
		if err != nil {
			return fmt.Errorf("set the guest's clock: %w", err)
		}
		if time.Since(now) <= timeSoon {
			break
		}
	}
	return nil
}

// specialise limits the function's memory and mounts its code, and its layers when the slot's image has some.
func (a *agentConn) specialise(ctx context.Context, q *link.Message) error {
	limit := &pb.LinuxResources{Memory: &pb.LinuxMemory{Limit: q.MemoryBytes}}
	if _, err := a.AgentServiceClient.UpdateContainer(ctx, &pb.UpdateContainerRequest{Resources: limit}); err != nil {
		return fmt.Errorf("limit memory: %w", err)
	}
	storages := []*pb.Storage{{Source: agent.CodeDisk, Fstype: "erofs", MountPoint: "/var/task"}}
	if q.Meta > 0 {
		storages[0].Options = []string{agent.SizesOption(q.Meta, q.Data)}
	}
	if len(q.Layers) > 0 {
		storages = append(storages, &pb.Storage{Source: agent.CodeDisk, Fstype: "erofs", MountPoint: agent.LayerPoint})
	}
	if _, err := a.AgentServiceClient.UpdateEphemeralMounts(ctx, &pb.UpdateEphemeralMountsRequest{Storages: storages}); err != nil {
		return fmt.Errorf("mount code: %w", err)
	}
	return nil
}

// letOut has the guest catch what its function sends out.
func (a *agentConn) letOut(ctx context.Context) error {
	everywhere := &pb.Routes{Routes: []*types.Route{{Dest: "0.0.0.0/0", Device: "lo"}}}
	if _, err := a.AgentServiceClient.UpdateRoutes(ctx, &pb.UpdateRoutesRequest{Routes: everywhere}); err != nil {
		return fmt.Errorf("let the function out: %w", err)
	}
	return nil
}

// bootstrap starts a provided function; entrypoint says why it cannot start, which is its developer's fault.
func (a *agentConn) bootstrap(ctx context.Context, argv, env []string) (entrypoint string, err error) {
	_, err = a.AgentServiceClient.ExecProcess(ctx, &pb.ExecProcessRequest{Process: &pb.Process{Args: argv, Env: env, Cwd: "/var/task"}})
	if s, ok := status.FromError(err); ok && s.Code() == codes.InvalidArgument {
		return s.Message(), nil
	}
	return "", err
}

// wait returns how the function's process ended, when it does.
func (a *agentConn) wait(ctx context.Context) (unix.WaitStatus, bool, error) {
	r, err := a.AgentServiceClient.WaitProcess(ctx, &pb.WaitProcessRequest{})
	if err != nil {
		return 0, false, err
	}
	return unix.WaitStatus(r.Status &^ agent.OutOfMemory), r.Status&agent.OutOfMemory != 0, nil
}

func (a *agentConn) use(ctx context.Context) (*link.Use, error) {
	r, err := a.AgentServiceClient.StatsContainer(ctx, &pb.StatsContainerRequest{})
	if err != nil {
		return nil, fmt.Errorf("read use: %w", err)
	}
	g := r.GetCgroupStats()
	m := g.GetMemoryStats().GetUsage()
	return &link.Use{MemoryBytes: int64(m.GetUsage()), MemoryMax: int64(m.GetMaxUsage()), Processes: int(g.GetPidsStats().GetCurrent())}, nil
}
