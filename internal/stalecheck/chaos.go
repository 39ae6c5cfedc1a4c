package stalecheck

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/kvtier/kvtier/coordinator"
)

// fault lets one thing go wrong.
func (w *world) fault() {
	kinds := []struct {
		kind   fault
		weight int
		do     func()
	}{
		{faultFlush, 1, func() { w.log("Redis is flushed"); w.redis.flush(); w.control.put(nil) }},
		{faultFlush, 1, func() { w.log("data is flushed"); w.redis.flush() }},
		{faultEvict, 10, func() {
			if key, ok := w.anyKey(); ok {
				w.redis.remove(key)
			}
		}},
		{faultRollback, 4, func() { w.log("data goes back to a snapshot"); w.redis.restore() }},
		{faultRollback, 6, func() { w.redis.snapshot() }},
		{faultRollback, 4, w.rollRecordBack},
		{faultFork, 4, w.fork},
		{faultCorrupt, 16, func() {
			w.damage(func(b []byte) []byte { i := w.rng.IntN(len(b)); b[i] ^= 1 << w.rng.IntN(8); return b })
		}},
		{faultTruncate, 8, func() { w.damage(func(b []byte) []byte { return b[:w.rng.IntN(len(b))] }) }},
		{faultForge, 4, func() { w.damage(forgeLength) }},
		{faultMisplace, 14, w.misplace},
		{faultLateWrite, 14, w.redis.arrive},
		{faultPartition, 6, func() {
			m := w.member()
			m.cutData = !m.cutData
			w.log("%s is cut off from data: %v", m.name, m.cutData)
		}},
		{faultPartition, 6, func() {
			m := w.member()
			m.cutControl = !m.cutControl
			w.log("%s is cut off from control: %v", m.name, m.cutControl)
		}},
		{faultPartition, 3, func() { l := w.leader(); l.cut = !l.cut; w.log("%s is cut off: %v", l.name, l.cut) }},
		{faultRecord, 2, func() {
			raw := slices.Clone(w.control.raw)
			if len(raw) == 0 {
				return
			}
			raw[w.rng.IntN(len(raw))] ^= 1 << w.rng.IntN(7)
			// A record has no checksum: damage that leaves a valid one is another record, as if an administrator had written it.
			if _, err := coordinator.ReadStored(model, raw); err == nil {
				raw = raw[:len(raw)/2]
			}
			w.log("the record is damaged")
			w.control.put(raw)
		}},
		{faultForget, 4, func() {
			l := w.leader()
			*l = leader{w: w, name: l.name}
			w.log("%s restarts and remembers nothing", l.name)
		}},
		{faultRestart, 3, func() {
			if m := w.member(); m.running == 0 && w.depth == 0 {
				m.stop()
				m.start()
			}
		}},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := w.rng.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			if w.without&k.kind == 0 {
				w.counts[cFaults]++
				k.do()
			}
			return
		}
	}
}

func (w *world) anyKey() (string, bool) {
	if len(w.redis.keys) == 0 {
		return "", false
	}
	return w.redis.keys[w.rng.IntN(len(w.redis.keys))], true
}

// damage changes a copy of a value: what was read before stays as it was.
func (w *world) damage(how func([]byte) []byte) {
	key, ok := w.anyKey()
	if !ok || len(w.redis.values[key]) == 0 {
		return
	}
	w.redis.values[key] = how(slices.Clone(w.redis.values[key]))
	w.log("a value is damaged")
}

// forgeLength shortens a value and makes header, length and checksums fit, as only an attacker would. Offsets are those of codec's
// wire format.
func forgeLength(b []byte) []byte {
	le := binary.LittleEndian
	const head, crcAt = 200, 196
	if len(b) < head+64 {
		return b
	}
	off := int(le.Uint32(b[8:]))
	if off > len(b)-64 || off < head {
		return b
	}
	b = b[:len(b)-64]
	le.PutUint64(b[16:], uint64(len(b)-off))
	le.PutUint64(b[24:], uint64(len(b)-off))
	le.PutUint64(b[184:], xxh3.Hash(b[off:]))
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(b[crcAt:], crc32.Update(crc32.Checksum(b[:crcAt], table), table, b[head:off]))
	return b
}

// misplace puts a value under another's key, or exchanges two.
func (w *world) misplace() {
	a, ok := w.anyKey()
	b, _ := w.anyKey()
	if !ok {
		return
	}
	va, vb := w.redis.values[a], w.redis.values[b]
	w.redis.values[b] = va
	if w.one(2) {
		w.redis.values[a] = vb
	}
	w.log("values are exchanged")
}

// rollRecordBack brings an earlier record back.
func (w *world) rollRecordBack() {
	if c := w.control; len(c.old) > 0 {
		s := c.old[w.rng.IntN(len(c.old))]
		c.put(s.Raw())
		c.last, c.err = s, nil
		w.log("the record goes back")
	}
}

// fork makes one coordinator lose its memory while Redis loses its last write, and change the record once more in the same
// millisecond: numbers are given out twice.
func (w *world) fork() {
	c := w.control
	if len(c.old) == 0 {
		return
	}
	// A worker that has just adopted what is about to be lost.
	m := w.member()
	if m.cutControl || m.asking != nil {
		return
	}
	l := w.leader()
	if l.cut || l.pending != nil {
		return
	}
	purge := func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
		return r.Purge(coordinator.AllVersions, s)
	}
	before, err := c.load()
	if err != nil || !l.update("purge", false, purge) {
		return
	}
	l.commit()
	for m.poll(); m.asking != nil; {
		m.poll()
	}
	c.put(before.Raw())
	c.last, c.err = before, nil
	for i := range w.leaders {
		w.leaders[i] = newLeader(w, w.leaders[i].name)
	}
	w.log("the last write is lost, and nobody remembers it")
	for range 1 + w.rng.IntN(2) {
		l = w.leader()
		if l.update("purge", false, purge) {
			l.commit()
		}
	}
}

// heal ends all faults and checks that everybody comes back: otherwise safety could be had by never serving anything.
func (w *world) heal() {
	w.calm = true
	w.log("faults end")
	for _, m := range w.members {
		m.cutData, m.cutControl = false, false
	}
	for _, l := range w.leaders {
		l.cut, l.pending = false, nil
	}
	w.redis.late = nil
	if _, err := w.control.load(); err != nil && w.control.raw != nil && !slices.ContainsFunc(w.leaders, func(l *leader) bool { return l.known != nil }) {
		w.control.put(nil) // what an operator does with a record that nobody remembers
	}
	healed := false
	for range 60 {
		w.now = w.now.Add(time.Second)
		w.round()
		if healed = w.healthy() == ""; healed {
			break
		}
	}
	w.check(iHeals, healed, "after a minute without faults: %s", w.healthy())
	w.warm()
	w.calm = false
}

// round is a second in the life of a fleet without faults.
func (w *world) round() {
	for _, l := range w.leaders {
		l.reconcile()
		if l.pending != nil {
			l.commit()
		}
		l.reclaim()
	}
	l := w.leaders[0]
	for n := range checkpoints { // what workers do until they are registered
		if l.update("register", true, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Register(identity(n), label(n), true, s)
		}) {
			l.commit()
		}
	}
	if found, err := w.control.load(); err == nil && !slices.ContainsFunc(found.Versions(), func(v coordinator.Version) bool { return v.State == coordinator.Active }) {
		if l.update("activate", false, func(r coordinator.Record, s coordinator.Stamp) (coordinator.Record, error) {
			return r.Activate(label(0), false, s)
		}) {
			l.commit()
		}
	}
	for _, m := range w.members {
		m.asking = nil
		for m.poll(); m.asking != nil; {
			m.poll()
		}
		m.beat()
		m.follow()
		for range 50 { // a batch that cannot be stored comes back for ever
			if !m.task() {
				break
			}
		}
	}
}

// healthy says who does not follow the record, or nothing.
func (w *world) healthy() string {
	found, err := w.control.load()
	if err != nil {
		return "no record: " + err.Error()
	}
	for _, m := range w.members {
		v := m.watch.View(w.now)
		if v.State != coordinator.Leased || v.Gen != found.Gen || v.Sum != found.Sum() {
			return m.name + " does not hold the record: " + v.Problem
		}
		if e, ok := found.Variants[m.resident()]; !ok || e.State != coordinator.Active {
			return m.name + " is not on active weights"
		}
	}
	return ""
}

// warm checks that what one member computes, it and its equals find again.
func (w *world) warm() {
	r := request{tenant: 1, path: []node{node(0).child(0)}, tokens: []int32{0, 0, 7}}
	for _, m := range w.members {
		m.send(r)
		res := m.send(r)
		w.check(iHeals, res.HotTokens == layout.BlockTokens, "%s does not hit what it has just computed: %v", m.name, res.Miss)
	}
}
