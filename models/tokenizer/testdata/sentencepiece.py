"""Makes sentencepiece.json: hashes of the ids that sentencepiece 0.2.1 gives for generated texts (see fuzz.py), 20 blocks of 100 per model.

    python sentencepiece.py GOLDEN_DIR
"""
import hashlib,json,os,sys
sys.path=[p for p in sys.path if os.path.abspath(p)!=os.path.dirname(os.path.abspath(__file__))]
import sentencepiece as sp
exec(open('fuzz.py').read().split("golden=sys.argv[1]")[0])
golden=sys.argv[1]
out={}
for n in sorted(os.listdir(os.path.join(golden,'tokenizers'))):
    f=os.path.join(golden,'tokenizers',n,'spiece.model')
    if not os.path.exists(f): continue
    m=sp.SentencePieceProcessor(model_file=f)
    hs=[]
    for i in range(20):
        r=Rand(1000003*i+len(n)); h=hashlib.sha256()
        for k in range(100): h.update((','.join(map(str,m.encode(text(r).replace('\0',''))))+'\n').encode())
        hs.append(h.hexdigest()[:8])
    out[n]=' '.join(hs)
json.dump(out,open('sentencepiece.json','w'),indent=0)
