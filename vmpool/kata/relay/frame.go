package relay

import (
	"encoding/binary"
	"fmt"
)

// frame writes one frame, whose body is at most bodyMax long.
func (r *Relay) frame(typ byte, id uint16, body ...[]byte) error {
	r.send.Lock()
	defer r.send.Unlock()
	n := headerSize
	for _, b := range body {
		n += copy(r.out[n:], b)
	}
	binary.LittleEndian.PutUint32(r.out[:], uint32(n-headerSize))
	binary.LittleEndian.PutUint16(r.out[4:], id)
	r.out[6], r.out[7] = typ, 0
	_, err := r.conn.Write(r.out[:n])
	return err
}

// read takes frames apart until the connection ends.
func (r *Relay) read() error {
	buf := make([]byte, headerSize+bodyMax)
	from, to := 0, 0
	fill := func(need int) error {
		for to-from < need {
			if len(buf)-from < need {
				to = copy(buf, buf[from:to])
				from = 0
			}
			n, err := r.conn.Read(buf[to:])
			to += n
			if err != nil && to-from < need {
				return err
			}
		}
		return nil
	}
	for {
		if from == to {
			from, to = 0, 0
		}
		if err := fill(headerSize); err != nil {
			return err
		}
		length := binary.LittleEndian.Uint32(buf[from:])
		id, typ := binary.LittleEndian.Uint16(buf[from+4:]), buf[from+6]
		if length > bodyMax {
			return fmt.Errorf("%w: a frame of %d bytes", errProtocol, length)
		}
		if err := fill(headerSize + int(length)); err != nil {
			return err
		}
		body := buf[from+headerSize : from+headerSize+int(length)]
		from += headerSize + int(length)
		if err := r.take(typ, id, body); err != nil {
			return err
		}
	}
}

// take handles one frame.
func (r *Relay) take(typ byte, id uint16, body []byte) error {
	switch typ {
	case typeOpen:
		return r.opened(id)
	case typeFlow:
		return r.openedFlow(id, body)
	case typeDgram:
		return r.tookDatagram(body)
	}
	r.mu.Lock()
	s := r.streams[id]
	r.mu.Unlock()
	if s == nil {
		return nil // it ended here while the frame was under way
	}
	switch typ {
	case typeData:
		return s.deliver(body)
	case typeCredit:
		if len(body) != 4 {
			return fmt.Errorf("%w: credit of %d bytes", errProtocol, len(body))
		}
		return s.allow(binary.LittleEndian.Uint32(body))
	case typeClose:
		s.finish()
		return nil
	case typeReset:
		if isFlow(s) {
			s.reset()
			return nil
		}
	}
	return fmt.Errorf("%w: frame type %d", errProtocol, typ)
}
