"""Makes scores.json: what tokenizers 0.22.2 reads numbers of a Unigram vocabulary as, which is not always the nearest float64.

    python scores.py
"""
import json, random
from tokenizers import Tokenizer
r=random.Random(0)
texts=[repr(-r.uniform(0,16)) for _ in range(200)]+[repr(-r.expovariate(1e-3)) for _ in range(50)]+['0','-0','-0.0','3','-17','1e3','-1E-7','2.5e+2','1e-400','123456789012345678901234567890','0.1234567890123456789012345678901','-99999999999999999999.5','18446744073709551615','18446744073709551616.25','9007199254740993','9007199254740993.0','1.7976931348623157e308','4.9e-324','2.2250738585072014e-308','12345678901234567e-330','0.00000000000000000000000000012345678901234567']
out=[]
for t in texts:
    file='{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"Unigram","unk_id":0,"vocab":[["u",0],["a",%s]],"byte_fallback":false}}'%t
    out.append([t,repr(float(json.loads(Tokenizer.from_str(file).to_str())['model']['vocab'][1][1]))])
json.dump(out,open('scores.json','w'),indent=0)
print(sum(float(a)!=float(b) for a,b in out),'of',len(out),'are not the nearest')
