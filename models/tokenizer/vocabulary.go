package tokenizer

// vocabulary has the tokens of a model by id and by text, as flat tables that may lie in shared memory. What a table says
// is checked at each use: a wrong one gives wrong tokens, but nothing outside of it is read.
type vocabulary struct {
	count int // tokens; ids may have gaps
	flags []byte
	names textTable // by id
	keys  textTable // what the model looks for, by id; the same but for byte-level models, whose keys are bytes
	table []uint32  // two words a slot: half of the hash, and id+1, or 0
	named []uint32  // the same for names, where they are not the keys
}

// Flags of an id.
const (
	flagPresent = 1 << iota
	flagWhole   // the model makes this one token of its own text
	flagKey     // the model can find it
)

// textTable is texts one after the other.
type textTable struct {
	ends []uint32 // of each text, one more in front for the start of the first
	blob []byte
}

func (t *textTable) at(id int32) []byte {
	if id < 0 || int(id)+1 >= len(t.ends) {
		return nil
	}
	i, j := t.ends[id], t.ends[id+1]
	if i > j || int64(j) > int64(len(t.blob)) {
		return nil
	}
	return t.blob[i:j]
}

// find is the id of a key, or -1.
func (v *vocabulary) find(key []byte, hash uint64) int32 {
	return lookup(v.table, &v.keys, v.flags, key, hash)
}

func lookup(table []uint32, texts *textTable, flags []byte, key []byte, hash uint64) int32 {
	mask := len(table)/2 - 1
	if mask < 0 {
		return -1
	}
	part := uint32(hash >> 32)
	for i, n := int(hash)&mask, 0; n <= mask; i, n = (i+1)&mask, n+1 {
		id := int32(table[2*i+1]) - 1
		if id < 0 {
			return -1
		}
		if table[2*i] == part && int(id) < len(flags) && string(texts.at(id)) == string(key) {
			return id
		}
	}
	return -1
}

// name is the text of an id; it shares memory with the table.
func (v *vocabulary) name(id int32) ([]byte, bool) {
	if id < 0 || int(id) >= len(v.flags) || v.flags[id]&flagPresent == 0 {
		return nil, false
	}
	return v.names.at(id), true
}

func (v *vocabulary) id(name string) (int32, bool) {
	key := bytesOf(name)
	table, texts := v.named, &v.names
	if len(table) == 0 {
		table, texts = v.table, &v.keys
	}
	id := lookup(table, texts, v.flags, key, hashBytes(key))
	return id, id >= 0
}

// newTable is a hash table of texts: those of the ids that want.
func newTable(texts [][]byte, want func(id int) bool) []uint32 {
	n := 0
	for id := range texts {
		if want(id) {
			n++
		}
	}
	size := tableSize(n)
	table := make([]uint32, 2*size)
	for id := len(texts) - 1; id >= 0; id-- {
		if !want(id) {
			continue
		}
		text := texts[id]
		h := hashBytes(text)
		i := int(h) & (size - 1)
		for table[2*i+1] != 0 {
			// Of two equal texts, which only Unigram has, the later one counts.
			if old := table[2*i+1] - 1; string(texts[old]) == string(text) {
				break
			}
			i = (i + 1) & (size - 1)
		}
		table[2*i], table[2*i+1] = uint32(h>>32), uint32(id)+1
	}
	return table
}

// newTextTable joins texts.
func newTextTable(texts [][]byte) textTable {
	t := textTable{ends: make([]uint32, 1, len(texts)+1)}
	for _, s := range texts {
		t.blob = append(t.blob, s...)
		t.ends = append(t.ends, uint32(len(t.blob)))
	}
	return t
}
