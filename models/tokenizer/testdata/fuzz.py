"""Makes fuzz.json: hashes of what tokenizers 0.22.2 does with 10,000 generated texts per golden tokenizer, in blocks of 100 texts.
fuzz_truth_test.go generates the same texts: the generator below stands there too.

    python fuzz.py GOLDEN_DIR              # writes fuzz.json
    python fuzz.py GOLDEN_DIR NAME BLOCK   # prints the results of one block, to find out what differs
"""
import hashlib,json,os,sys
from tokenizers import Tokenizer
M=(1<<64)-1
class Rand:
    def __init__(s,seed): s.x=seed
    def next(s,n):
        s.x=(s.x*6364136223846793005+1442695040888963407)&M
        return (s.x>>33)%n
fragments=json.load(open('fragments.json'))
words,ranges=fragments['words'],fragments['ranges']
def text(r):
    out=[]
    for _ in range(1+r.next(14)):
        k=r.next(10)
        if k<6: out.append(words[r.next(len(words))])
        elif k<8:
            lo,hi=ranges[r.next(len(ranges))]; out.append(chr(lo+r.next(hi-lo+1)))
        elif k==8: out.append(words[r.next(len(words))]*(1+r.next(5)))
        else: out.append(chr(97+r.next(26))*(1+r.next(3)))
        if r.next(3)==0: out.append(' ')
    return ''.join(out)
def result(t,texts):
    e=t.encode(*texts)
    return '|'.join([','.join(map(str,e.ids)),','.join('%d:%d'%o for o in e.offsets),'\0'.join(e.tokens),','.join(map(str,e.type_ids)),
        t.decode(e.ids),t.decode(e.ids,skip_special_tokens=False)])+'\n'
def block(name,i,t):
    r=Rand(1000003*i+len(name)); rows=[]
    for k in range(100):
        texts=[text(r)]
        if k%10==9: texts.append(text(r))
        rows.append((texts,result(t,texts)))
    return rows
golden=sys.argv[1]
def load(n): return Tokenizer.from_file(os.path.join(golden,'tokenizers',n,'tokenizer.json'))
if len(sys.argv)>2:
    for texts,res in block(sys.argv[2],int(sys.argv[3]),load(sys.argv[2])): print(json.dumps([texts,res]))
else:
    out={}
    for n in sorted(os.listdir(os.path.join(golden,'tokenizers'))):
        if '.' in n: continue
        t=load(n)
        out[n]=' '.join(hashlib.sha256(''.join(r for _,r in block(n,i,t)).encode('utf8','surrogatepass')).hexdigest()[:8] for i in range(100))
    json.dump(out,open('fuzz.json','w'),indent=0)
