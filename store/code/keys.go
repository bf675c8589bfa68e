package code

import (
	"context"
	"encoding/binary"
	"io"
	"slices"
	"time"

	"starling"
	"starling/store/image"
)

const keyPatience = 3 * time.Second // for a manager's answer, and for a partition's word to a manager

// A Keeper gives out keys, on managers. It makes one for each upload, and gives it to a host that runs the package: the version that
// the host names must exist, be made of this package or have it for a layer, and have been placed on this host by the owner of a partition of its
// function. What the host itself says is not enough.
type Keeper struct {
	Ring    *image.Ring
	Version func(ctx context.Context, id starling.VersionID) (*starling.Version, error)
	Owners  func(f starling.FunctionRef) []Peer // of the partitions that hold the function's keys
}

// makeKey returns a fresh key for the image of k, and the same as the managers seal it.
func (s *Store) makeKey(ctx context.Context, k key) (fresh, wrapped []byte, err error) {
	if ke := s.cfg.Images.Keeper; ke != nil {
		fresh = image.NewKey()
		wrapped, err = ke.Ring.Wrap(fresh, k.subject())
		return fresh, wrapped, err
	}
	b, err := s.askManagers(ctx, appendRequest(nil, operationMakeKey, k))
	if err != nil {
		return nil, nil, err
	}
	if len(b) <= image.KeySize {
		return nil, nil, starling.Errorf(starling.Unavailable, "make image key", "an answer of %d bytes", len(b))
	}
	return b[:image.KeySize], b[image.KeySize:], nil
}

// releaseKey asks for the key of an image for a version that is placed on this host. Denied when it is not.
func (s *Store) releaseKey(ctx context.Context, k key, version starling.VersionID, wrapped []byte) ([]byte, error) {
	if ke := s.cfg.Images.Keeper; ke != nil {
		return s.release(ctx, k, s.cfg.Images.Self, version, wrapped)
	}
	req := binary.LittleEndian.AppendUint64(appendRequest(nil, operationReleaseKey, k), uint64(version))
	return s.askManagers(ctx, appendSized(req, wrapped))
}

// askManagers asks one manager after the other until one answers. A refusal is an answer.
func (s *Store) askManagers(ctx context.Context, req []byte) ([]byte, error) {
	var last error = starling.Errorf(starling.Unavailable, "ask for key", "no manager is known")
	for _, m := range s.cfg.Images.Managers() {
		b, err := s.askKey(ctx, m.Addr, req)
		if err == nil {
			return b, nil
		}
		if k := starling.KindOf(err); k == starling.Denied || ctx.Err() != nil {
			return nil, err
		}
		last = err
	}
	return nil, last
}

func (s *Store) askKey(ctx context.Context, addr string, req []byte) ([]byte, error) {
	st, stop, err := s.open(ctx, addr, keyPatience)
	if err != nil {
		return nil, err
	}
	defer stop()
	if _, err := st.Write(req); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask for key", "%w", err)
	}
	if err := readStatus(st); err != nil {
		return nil, err
	}
	return readSized(st, 4096)
}

// release opens a key for a host after it has made sure that the host runs the version.
func (s *Store) release(ctx context.Context, k key, host starling.NodeID, version starling.VersionID, wrapped []byte) ([]byte, error) {
	const op = "release image key"
	ke := s.cfg.Images.Keeper
	v, err := ke.Version(ctx, version)
	if err != nil {
		return nil, err
	}
	if v.Function.Account != k.account || v.Code != k.hash && !slices.Contains(v.LayerCode, k.hash) {
		s.count.keysRefused.Inc()
		return nil, starling.Errorf(starling.Denied, op, "version %d is not made of package %s, and it is none of its layers", version, k.hash)
	}
	if !s.placed(ctx, v, host) {
		s.count.keysRefused.Inc()
		s.cfg.Log.Warn("a host asked for the key of code that is not placed on it", "host", host, "version", version, "account", k.account, "hash", k.hash)
		return nil, starling.Errorf(starling.Denied, op, "version %d is not placed on %s", version, host).With("NotPlaced")
	}
	s.count.keysReleased.Inc()
	return ke.Ring.Unwrap(wrapped, k.subject())
}

// Placed reports, on a manager, whether the owner of a partition of the version's function has lately placed it on the host. It
// asks them.
func (s *Store) Placed(ctx context.Context, v *starling.Version, host starling.NodeID) bool {
	return s.placed(ctx, v, host)
}

// placed asks the owners of the function whether one of them has placed the version on the host.
func (s *Store) placed(ctx context.Context, v *starling.Version, host starling.NodeID) bool {
	for _, owner := range s.cfg.Images.Keeper.Owners(v.Function) {
		if owner.ID == s.cfg.Images.Self {
			if s.placedHere(v.ID, host) {
				return true
			}
			continue
		}
		req := appendRequest(nil, operationPlaced, key{v.Function.Account, v.Code})
		req = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(req, uint64(v.ID)), uint64(host))
		b, err := s.askKey(ctx, owner.Addr, req)
		if err != nil {
			s.cfg.Log.Warn("ask who runs a version", "owner", owner.ID, "version", v.ID, "error", err)
			continue
		}
		if len(b) == 1 && b[0] == 1 {
			return true
		}
	}
	return false
}

func (s *Store) placedHere(version starling.VersionID, host starling.NodeID) bool {
	return s.cfg.Images.Placed != nil && s.cfg.Images.Placed(version, host)
}

// serveKey answers the three questions about keys. Who may ask which is bound to the roles in the asker's certificate.
func (s *Store) serveKey(ctx context.Context, st peerStream, r io.Reader, op byte, k key) error {
	const what = "serve key"
	answer, err := []byte(nil), error(nil)
	roles := st.Peer().Roles
	switch {
	case op == operationPlaced && roles.Has(starling.RoleManager):
		var b [16]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return starling.Errorf(starling.Invalid, what, "the request is cut: %w", err)
		}
		answer = []byte{0}
		if s.placedHere(starling.VersionID(binary.LittleEndian.Uint64(b[:])), starling.NodeID(binary.LittleEndian.Uint64(b[8:]))) {
			answer[0] = 1
		}
	case op == operationMakeKey && roles.Has(starling.RoleFrontend) && s.cfg.Images.Keeper != nil:
		fresh, wrapped, e := s.makeKey(ctx, k)
		answer, err = append(fresh, wrapped...), e
	case op == operationReleaseKey && roles.Has(starling.RoleHost) && s.cfg.Images.Keeper != nil:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return starling.Errorf(starling.Invalid, what, "the request is cut: %w", err)
		}
		wrapped, e := readSized(r, 4096)
		if e != nil {
			return e
		}
		answer, err = s.release(ctx, k, st.Peer().Node, starling.VersionID(binary.LittleEndian.Uint64(b[:])), wrapped)
	default:
		return starling.Errorf(starling.Denied, what, "not from a node with these roles, or not at this node")
	}
	if err != nil {
		return err
	}
	_, err = st.Write(appendSized([]byte{0}, answer))
	return err
}
